"""Is `auto` never slower than plain decoding, and close to the best fixed setting?

    python tests/bench/never_slower.py [BUNDLE] [--pairs 30] [--tokens 512] [--only KIND] [--defaults] [--json FILE]

Hostile texts defeat every drafter: prompts of random words, base64 and other languages, continued by sampling at
temperature 1.5 (coupled, so the tokens are the same whoever drafts). Friendly ones are stories told greedily, or with
--defaults as the bundle does by itself. Every
pair is one text answered by plain decoding, by plain decoding again (the control) and by `auto`, friendly ones also by
the best fixed setting that a sweep over drafters, depths and nodes found on other texts; who goes first changes.
`auto` starts every pair knowing nothing but the cost curve. Counted is the time after the first 64 tokens of an
answer; where the context is short, answers follow one another until `--tokens` have been counted.

A ratio is seconds over plain decoding's seconds for the same tokens; shown is the median with a bootstrap interval of
95 %. Where the control strays more than 1 % the verdict is "undecided".
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from paceline.bench_prompts import built_in_tasks
from paceline.embedded import embedded_bundle
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.loading import load
from paceline.runtime.request import Sampling

FIRST = 64
LOSS, SHARE, STRAY = 1.02, 0.95, 0.01
PLAIN, AGAIN, AUTO, BEST = "none", "none again", "auto", "best fixed"
LANGUAGES = (
    "Der Zug nach Hamburg fuhr heute wegen einer Störung am Gleis erst mit großer Verspätung ab, und die Reisenden",
    "Il pleuvait depuis trois jours sur la vieille ville, et personne ne savait plus où ranger les parapluies ni",
    "Kun aamu valkeni järven yllä, kalastajat olivat jo vetäneet verkot rantaan ja laskivat hiljaa saalistaan",
)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A drafter at one size for all rounds. stop: its price of a pass, 0 to go on to the end."""

    drafter: str
    depth: int
    nodes: int
    stop: float

    def __str__(self) -> str:
        return f"{self.drafter}, depth {self.depth}, {self.nodes} nodes" + (
            f", stops at {self.stop}" if self.stop else ""
        )


@dataclass(frozen=True, slots=True)
class Result:
    """Ratios of seconds to plain decoding's, median and interval, and what follows."""

    text: str
    who: str
    pairs: int
    median: float
    low: float
    high: float
    tokens_per_second: float
    verdict: str


def hostile(rng: random.Random) -> Iterator[tuple[str, str]]:
    """(kind, prompt), for ever."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    while True:
        words = ("".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(24))
        yield "random words", " ".join(words)
        yield "base64", base64.b64encode(rng.randbytes(60)).decode()
        yield "another language", rng.choice(LANGUAGES)


def friendly(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Requests for stories."""
    asked = [task.turns[0] for task in built_in_tasks()]
    while True:
        rng.shuffle(asked)
        yield from (("stories", text) for text in asked)


class Bench:
    """One session in which everybody answers."""

    def __init__(self, bundle: Path, threads: int | None, tokens: int) -> None:
        self.session = load(bundle, drafter=PLAIN, threads=threads)
        self.tokens = tokens
        self.sampling, self.chat = Sampling(), False
        self.eos = frozenset(self.session.bundle.generation.eos_ids)
        self.fixed: Fixed | None = None

    def forget(self) -> None:
        """`auto` begins anew."""
        self.session._draftings.pop(AUTO, None)
        self.session._shared.books.clear()
        self.session.set_drafter(AUTO)

    def fix(self, size: Fixed) -> None:
        """Nothing but this size."""
        self.session.set_drafter(size.drafter)
        control = FixedLimit(size.nodes, size.depth, size.stop)
        self.session._drafting = replace(self.session._drafting, control=control)

    def answer(self, who: str, prompt: str, seed: int, most: int) -> tuple[float, list[int]]:
        """Seconds after the first tokens, and all tokens."""
        session = self.session
        if who == BEST and self.fixed:
            self.fix(self.fixed)
        else:
            session.set_drafter(PLAIN if who == AGAIN else who)
        session.reset()
        if self.chat:
            messages = [{"role": "user", "content": prompt}]
            events = session.chat(messages, max_tokens=most, sampling=self.sampling, seed=seed)
        else:
            events = session.generate(prompt, max_tokens=most, sampling=self.sampling, seed=seed)
        said, begun = list[int](), time.perf_counter()
        for event in events:
            if event.token is not None:
                said.append(event.token)
                if len(said) == FIRST:
                    begun = time.perf_counter()
        return (time.perf_counter() - begun if len(said) > FIRST else 0.0), said


def interval(values: Sequence[float], rng: np.random.Generator) -> tuple[float, float, float]:
    """Median and the 95 % interval of it by resampling."""
    found = np.asarray(values)
    medians = np.median(rng.choice(found, (2000, len(found))), axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(np.median(found)), float(low), float(high)


def run(
    bench: Bench, texts: Iterator[tuple[str, str]], pairs: int, who: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Seconds by kind of text and by who answered. Everybody answers a prompt before anybody gets the next one."""
    found: dict[str, dict[str, list[float]]] = {}
    turn = 0
    for number in range(pairs):
        kind, prompt = next(texts)
        spent, counted = dict.fromkeys(who, 0.0), 0
        bench.forget()
        while counted < bench.tokens:
            most = min(FIRST + bench.tokens - counted, bench.session.context - 100)
            answers = {
                n: bench.answer(n, prompt, turn, most)
                for n in [*who[turn % len(who) :], *who[: turn % len(who)]]
            }
            said = answers[PLAIN][1]
            for name, (seconds, tokens) in answers.items():
                spent[name] += seconds
                if tokens != said:
                    raise SystemExit(f"{name} answered {prompt!r} otherwise")
            counted += max(len(said) - FIRST, 0)
            turn += 1
            same = next(texts)
            while same[0] != kind:
                same = next(texts)
            prompt = same[1]
        for name in who:
            found.setdefault(kind, {}).setdefault(name, []).append(spent[name])
        print(f"{kind}: pair {number + 1} of {pairs}", file=sys.stderr)
    return found


def results(found: dict[str, dict[str, list[float]]], tokens: int) -> list[Result]:
    """The table, overall last where there are several kinds."""
    rng = np.random.default_rng(0)
    if len(found) > 1:
        merged: dict[str, list[float]] = {}
        for by_name in found.values():
            for name, values in by_name.items():
                merged.setdefault(name, []).extend(values)
        found = found | {"all": merged}
    table = []
    for kind, by_name in found.items():
        plain = by_name[PLAIN]
        control = interval([a / p for a, p in zip(by_name[AGAIN], plain, strict=True)], rng)[0]
        for name, values in by_name.items():
            base = by_name.get(BEST, plain) if name == AUTO and BEST in by_name else plain
            middle, low, high = interval([v / b for v, b in zip(values, base, strict=True)], rng)
            label = "auto to best fixed" if base is not plain else name
            verdict = judge(label, low, high, control, friendly=BEST in by_name)
            rate = tokens / float(np.median(values))
            table.append(Result(kind, label, len(values), middle, low, high, rate, verdict))
    return table


def judge(name: str, low: float, high: float, control: float, friendly: bool) -> str:
    """What the interval says about the promise, if the control lets it say anything."""
    if not name.startswith(AUTO):
        return ""
    if abs(control - 1) > STRAY:
        return "undecided: the control strays"
    most = 1 / SHARE if friendly else LOSS
    return "holds" if high <= most else "broken" if low > most else "undecided: the interval is wide"


def sweep(bench: Bench, texts: Iterator[tuple[str, str]], tries: int) -> Fixed:
    """The fastest fixed setting over a few texts; everybody gets the same ones, settings interleaved."""
    parts = list(bench.session.bundle.manifest.drafters)
    chains = [f"chain:{p}" for p in parts]
    sizes = [Fixed(c, d, 16, s) for c in chains for d in (1, 2, 3, 4, 6, 8) for s in (0.0, 0.3)]
    sizes += [Fixed(f"tree:{p}", d, n, 0.0) for p in parts for d in (2, 4) for n in (4, 8)]
    sizes += [Fixed(name, d, n, 0.0) for name in ("lookup", "lookup,recycle") for d, n in ((4, 4), (8, 8))]
    sizes += [Fixed(f"{c},lookup", d, 8, 0.3) for c in chains for d in (3, 6)]
    asked = [next(texts)[1] for _ in range(tries)]
    spent = dict.fromkeys(sizes, 0.0)
    for number, prompt in enumerate(asked):
        for size in sizes:
            bench.fixed = size
            spent[size] += bench.answer(BEST, prompt, number, FIRST + 160)[0]
        if number == 0:  # the slow part has no chance
            sizes = sorted(sizes, key=lambda s: spent[s])[: max(len(sizes) // 3, 3)]
    best = sorted(sizes, key=lambda s: spent[s])
    for size in best[:5]:
        print(f"sweep: {size}: {spent[size]:.3f} s", file=sys.stderr)
    return best[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", default=embedded_bundle())
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", choices=("hostile", "friendly"))
    parser.add_argument("--defaults", action="store_true")
    parser.add_argument("--sweep", type=int, default=3, metavar="N", help="texts that the sweep runs on")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    bench = Bench(given.bundle, given.threads, given.tokens)
    table: list[Result] = []
    if given.only != "friendly":
        bench.sampling = Sampling(temperature=1.5, banned=bench.eos)
        found = run(bench, hostile(random.Random(1)), given.pairs, (PLAIN, AGAIN, AUTO))
        table += results(found, given.tokens)
        show(table)
    if given.only != "hostile":
        bench.chat = bench.session.has_template
        bench.sampling = bench.session.defaults if given.defaults else Sampling()
        bench.fixed = sweep(bench, friendly(random.Random(2)), given.sweep)
        found = run(bench, friendly(random.Random(3)), given.pairs, (PLAIN, AGAIN, AUTO, BEST))
        table += results(found, given.tokens)
        print(f"best fixed setting: {bench.fixed}\n")
    show(table)
    if given.json is not None:
        found = json.dumps([asdict(r) for r in table], indent=1)
        write_atomically(given.json, found.encode(), private=False)


def show(table: Sequence[Result]) -> None:
    """Markdown."""
    print(
        "| text | who | pairs | seconds to plain (95 %) | tok/s | verdict |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for r in table:
        ratio = f"{r.median:.3f} ({r.low:.3f} to {r.high:.3f})"
        print(f"| {r.text} | {r.who} | {r.pairs} | {ratio} | {r.tokens_per_second:.0f} | {r.verdict} |")


if __name__ == "__main__":
    main()
