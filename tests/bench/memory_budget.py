"""Peak memory by the operating system against the plan, over budgets from the least that runs to four times that.

    python tests/bench/memory_budget.py [-b BUNDLE] [-c CONTEXT] [--cache FORM] [--tokens 2000] [--cgroup] [--json FILE]

Every budget is a fresh process that chats until so many tokens are out, its context sliding. With --cgroup each runs
in a memory cgroup (version 1 or 2) whose limit is the budget, swap included: passing it kills the process, and that is
reported. Needs the right to make one (root in most containers). Printed are the budget, the plan's total, the peak
(VmHWM), their ratio, what was chosen, and tokens a second. Exits with 1 where a process failed or passed its budget.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.runtime.bundle.whole_file import write_atomically

SHARES = (1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0)
_SLACK = 1_000_000
"""Bytes by which two processes differ that do the same."""
_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Job:
    """What a process does."""

    bundle: str | None
    context: int | None
    cache: str | None
    tokens: int
    drafter: str

    def flags(self) -> list[str]:
        """As the command line takes them."""
        pairs = [
            ("-b", self.bundle),
            ("-c", self.context),
            ("--cache", self.cache),
            ("--drafter", self.drafter),
        ]
        return [str(word) for flag, value in pairs if value is not None for word in (flag, value)]


def least(job: Job) -> int:
    """Bytes of the smallest plan of a process like those that chat."""
    import paceline.runtime.loading  # noqa: F401  (counts as the process that will run)
    from paceline.embedded import embedded_bundle
    from paceline.runtime.budget.planning import make_plan
    from paceline.runtime.drafters.names import parse
    from paceline.runtime.options import Options
    from paceline.runtime.placement import settle
    from paceline.runtime.text.text import Text

    bundle, settings = settle(Options(job.bundle or embedded_bundle(), context=job.context, cache=job.cache))
    text = Text.load(bundle.folder)
    found = make_plan(bundle, settings, parse(job.drafter, bundle.manifest.drafters), None).least
    del text
    return found


def chat(job: Job, budget: int) -> dict[str, Any]:
    """Chat until enough tokens are out."""
    import paceline

    session = paceline.load(
        job.bundle,
        memory=budget,
        memory_scope="process",
        context=job.context,
        cache=job.cache,
        drafter=job.drafter,
        overflow="slide",
    )
    out, turn, seconds = 0, 0, 0.0
    history: list[int] = []
    while out < job.tokens:
        turn += 1
        prompt = history[-(turn % 7) * 40 :] + session.text.encode(
            f"Once upon a time there were {turn} dogs. "
        )
        answer = [e.token for e in session.generate(prompt, max_tokens=250) if e.token is not None]
        history = (prompt + answer)[-2 * session.context :]
        out += max(len(answer), 1)
        seconds += session.stats.seconds["total"] - session.stats.seconds["prefill"]
    stats = session.stats.as_dict()
    return {
        "peak": stats["peak_rss_bytes"],
        "planned": stats["planned_bytes"],
        "tokens": out,
        "turns": turn,
        "rate": out / seconds,
        "choice": str(session.plan.choice) if session.plan else "",
    }


def in_cgroup(name: str, limit: int) -> list[Path]:
    """Make a memory cgroup with this limit; returns the files that a process joins it through."""
    if (_V1 / "memory.limit_in_bytes").exists():
        group = _V1 / name
        group.mkdir(exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(str(limit))
        swap = group / "memory.memsw.limit_in_bytes"
        if swap.exists():
            swap.write_text(str(limit))
    else:
        group = _V2 / name
        group.mkdir(exist_ok=True)
        (group / "memory.max").write_text(str(limit))
        swap = group / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")
    return [group / "cgroup.procs"]


def in_process(job: Job, budget: int, cgroup: bool = False) -> dict[str, Any]:
    """What a fresh process under a budget of bytes reports, or how it failed; without one, the least it needs."""
    command = [sys.executable, __file__, "--child", str(budget), *job.flags(), "--tokens", str(job.tokens)]
    groups = in_cgroup(f"paceline-{os.getpid()}", budget) if cgroup else []

    def join() -> None:
        for path in groups:
            path.write_text(str(os.getpid()))

    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=join)
    for path in groups:
        path.parent.rmdir()
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}"]
        return {"budget": budget, "failed": lines[-1]}
    found = json.loads(done.stdout.splitlines()[-1])
    return {"budget": budget, "wall": time.perf_counter() - begun, **found}


def kept(found: dict[str, Any]) -> bool:
    """Whether a process ran, and within its budget."""
    return "failed" not in found and found["peak"] <= found["budget"]


def row(found: dict[str, Any]) -> str:
    """One line of the table."""
    if "failed" in found:
        return f"{found['budget'] / 1e6:9.1f}  {found['failed']}"
    planned, peak = found["planned"], found["peak"]
    verdict = "kept" if kept(found) else "PASSED"
    return (
        f"{found['budget'] / 1e6:9.1f} {planned / 1e6:9.1f} {peak / 1e6:9.1f} {planned / peak - 1:+7.1%}  {verdict:<6}"
        f" {found['tokens']:>6} {found['rate']:8.1f}  {found['choice']}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-b", "--bundle")
    parser.add_argument("-c", "--context", type=int)
    parser.add_argument("--cache")
    parser.add_argument("--drafter", default="auto")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument(
        "--shares", type=lambda text: tuple(float(x) for x in text.split(",")), default=SHARES
    )
    parser.add_argument("--cgroup", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    job = Job(given.bundle, given.context, given.cache, given.tokens, given.drafter)
    if given.child is not None:
        print(json.dumps(chat(job, given.child) if given.child else {"least": least(job)}))
        return
    floor = in_process(job, 0)
    if "failed" in floor:
        raise SystemExit(floor["failed"])
    print(f"{job.bundle or 'storyteller'}, {'in a cgroup' if given.cgroup else 'no hard limit'}")
    print("   budget      plan      peak   error         tokens    tok/s  choice")
    results = []
    for share in given.shares:
        results.append(in_process(job, int(floor["least"] * share) + _SLACK, given.cgroup))
        print(row(results[-1]), flush=True)
    if given.json:
        write_atomically(given.json, json.dumps(results).encode(), private=False)
    if not all(map(kept, results)):
        sys.exit(1)


if __name__ == "__main__":
    main()
