"""SpecMemo's claim (2506.01986) on our own runtime: generation memory cut, speculative throughput kept.

    python tests/bench/specmemo.py BUNDLE [--rounds 3] [--tokens 96] [--plot docs/specmemo.svg] [--json FILE]

Generation memory is everything beyond the process, the weights and the graphs: peak (VmHWM) less what was resident
before the buffers. The baseline is this runtime as others run it: a float32 cache of 4096 rows, 64 nodes, logits
for every row of every pass, prompts included, and the present returned as past and new rows concatenated, which
costs a second cache. Against it stands the same bundle under budgets from the least that runs up to all it can use.
Every point is a process of its own, and the points take turns. A bundle whose model knows fewer than 4096 positions
is run with a cache of 4096 rows all the same: its answers are short, so no position beyond is used.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paceline.runtime.bundle.whole_file import whole_file, write_atomically

ROWS, NODES = 4096, 64
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Of the way from the least budget to the largest plan."""


def widened(bundle: Path, folder: Path) -> Path:
    """The bundle with 4096 positions in its manifest, in a copy."""
    copy = folder / "bundle"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    for part in (manifest["target"], *manifest["drafters"].values()):
        part["context"] = max(part["context"], ROWS)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def wasteful() -> None:
    """Make every model score all rows and return a present that is past and new rows in one new buffer."""
    from paceline.runtime.model import model
    from paceline.runtime.model.passes import Pass, Passes

    class Wasteful(Passes):
        def __init__(
            self, graph: Any, part: Any, fixed: Mapping[str, Any], widest: int, chunk: int, *rest: Any
        ) -> None:
            self.held = [array for name, array in fixed.items() if name.startswith("cache_")]
            super().__init__(graph, part, fixed, max(widest, chunk), chunk, *rest)

        def run(self, tokens: Any, positions: Any, mask: Any, past: int, want: int, *rest: Any) -> Pass:
            found = super().run(tokens, positions, mask, past, len(tokens), *rest)
            present = []
            for held in self.held:
                heads, rows, size = held.shape
                present.append(np.empty((heads, rows + len(tokens), size), held.dtype))
                present[-1][:, :rows] = held
            return found

    model.Passes = Wasteful  # type: ignore[attr-defined,misc]


def child(bundle: str, budget: int | None, baseline: bool, tokens: int) -> dict[str, Any]:
    """One point: load, answer a few requests, report."""
    import paceline
    from paceline.bench_prompts import built_in_tasks
    from paceline.memory.budget import peak_memory, resident
    from paceline.runtime.model import rows as target

    before: list[int] = []
    caches: list[Any] = []
    built = target.KeyValueCache

    def cache(*sizes: Any) -> Any:
        before.append(resident())
        caches.append(built(*sizes))
        return caches[-1]

    target.KeyValueCache = cache  # type: ignore[assignment,misc]
    if baseline:
        wasteful()
    flags: dict[str, Any] = {"context": ROWS, "max_nodes": NODES if baseline else None}
    flags |= {"cache": "fp32"} if baseline else {"memory": budget, "memory_scope": "process"}
    session = paceline.load(bundle, drafter="chain" if baseline else "auto", **flags)
    if baseline:
        for held in caches:
            held.touch()
    loaded = session.bundle.manifest.drafters if len(caches) > 1 else {}
    fixed = before[0] + sum(session.bundle.manifest.files[part.data].bytes for part in loaded.values())
    count, seconds = 0, 0.0
    for task in built_in_tasks()[:6]:
        session.reset()
        events = list(session.chat([{"role": "user", "content": task.turns[0]}], max_tokens=tokens))
        spent = session.stats.seconds["total"] - session.stats.seconds["prefill"]
        made = sum(e.token is not None for e in events)
        count, seconds = count + made, seconds + spent
    return {
        "generation": (peak_memory() or 0) - fixed,
        "peak": peak_memory(),
        "rate": count / seconds,
        "planned": session.stats.planned_bytes,
        "choice": str(session.plan.choice) if session.plan else "baseline",
        "per_round": session.stats.tokens_per_round,
    }


def point(bundle: Path, budget: int | None, baseline: bool, tokens: int) -> dict[str, Any]:
    """Run a child and read its report."""
    command = [sys.executable, __file__, str(bundle), "--child", str(budget or 0), "--tokens", str(tokens)]
    done = subprocess.run(command + ["--baseline"] * baseline, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def bounds(bundle: Path) -> tuple[int, int]:
    """The least budget and the largest plan, of a process like those that answer."""
    from paceline.runtime.budget.planning import make_plan
    from paceline.runtime.drafters.names import parse
    from paceline.runtime.options import Options
    from paceline.runtime.placement import settle
    from paceline.runtime.text.text import Text

    import paceline.runtime.loading  # noqa: F401  (isort: skip)

    opened, settings = settle(Options(bundle, context=ROWS))
    text = Text.load(opened.folder)
    made = make_plan(opened, settings, parse("auto", opened.manifest.drafters), None)
    del text
    return made.least, made.total


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--shares", type=lambda text: [float(x) for x in text.split(",")], default=SHARES)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--baseline", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(child(str(given.bundle), given.child or None, given.baseline, given.tokens)))
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = widened(given.bundle, Path(folder))
        point(bundle, None, False, 8)  # the first load measures
        point(bundle, 1 << 40, False, 8)
        least, most = bounds(bundle)
        budgets = [None, *(int(least + share * (most - least)) + 2_000_000 for share in given.shares)]
        runs: dict[int | None, list[dict[str, Any]]] = {budget: [] for budget in budgets}
        for _ in range(given.rounds):
            for budget in budgets:
                runs[budget].append(point(bundle, budget, budget is None, given.tokens))
    report(runs, given.plot, given.json)


def report(runs: dict[int | None, list[dict[str, Any]]], plot: Path | None, out: Path | None) -> None:
    """A table, and a curve of throughput against generation memory."""
    rows = [
        {
            "budget": budget,
            "generation": max(r["generation"] for r in found),
            "peak": max(r["peak"] for r in found),
            "rate": statistics.median(r["rate"] for r in found),
            "low": min(r["rate"] for r in found),
            "high": max(r["rate"] for r in found),
            "choice": found[-1]["choice"],
        }
        for budget, found in runs.items()
    ]
    base, best = rows[0], max(rows[1:], key=lambda r: r["rate"])
    print("  budget MB  peak MB  generation MB    cut   tok/s [low high]   of baseline  of best  choice")
    for r in rows:
        budget = f"{r['budget'] / 1e6:9.1f}" if r["budget"] else " baseline"
        cut, rate = 1 - r["generation"] / base["generation"], r["rate"]
        print(
            f"  {budget} {r['peak'] / 1e6:9.1f} {r['generation'] / 1e6:9.1f}     {cut:6.1%}"
            f"  {rate:7.1f} [{r['low']:.1f} {r['high']:.1f}]  {rate / base['rate']:6.2f}  {rate / best['rate']:6.2f}"
            f"  {r['choice']}"
        )
    if out:
        write_atomically(out, json.dumps(rows).encode(), private=False)
    if plot:
        draw(rows, plot)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Throughput over generation memory, the baseline as a point of its own."""
    import matplotlib.pyplot as plt

    base, points = rows[0], sorted(rows[1:], key=lambda r: r["generation"])
    figure, axes = plt.subplots(figsize=(7, 4))
    x = [r["generation"] / 1e6 for r in points]
    axes.plot(x, [r["rate"] for r in points], "o-", label="Paceline under a budget")
    axes.fill_between(x, [r["low"] for r in points], [r["high"] for r in points], alpha=0.2)
    axes.plot(
        base["generation"] / 1e6,
        base["rate"],
        "s",
        color="tab:red",
        label="baseline: fp32, 64 nodes, all logits",
    )
    axes.axvline(
        0.35 * base["generation"] / 1e6, linestyle=":", color="grey", label="65 % less than the baseline"
    )
    axes.set(xlabel="generation memory, MB", ylabel="tokens a second", ylim=(0, None), xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with whole_file(path, private=False) as file:
        figure.savefig(file, format=path.suffix[1:])


if __name__ == "__main__":
    main()
