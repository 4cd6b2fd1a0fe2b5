"""The ways to draft beside the target's pass, with the same models on the same threads: an ablation by name.

    paceline export BUNDLE OUT --split EXIT
    python tests/bench/mirror.py OUT --prompts FILE --drafter chain [--temp 0] [--json FILE]

serial 1 and serial 2 draft before the target's pass, which has one thread or two; the others have one for the target
and one for the drafter: window (PEARL), fan (SSD), weight (Mirror without an exit), exit (Mirror; where OUT has a
split). Everyone takes a turn on every prompt, in an order that is turned round each time, and every answer must be
plain decoding's.

Told are medians or sums over the answers: tokens a second after the prompt was read, and to serial drafting with one
thread and with two; tokens a round; hits, of the drafts that had something beside; foreseen, where what the target
said was at least named; what a draft still took on a hit and on a miss, milliseconds, and hidden: how much of serial
drafting a hit hides; first, rest and step, milliseconds, of the target's two halves and of the whole round; ideal:
what the step would be if all was as in the plan, first + max(rest, draft); and the ratio to serial 1 that
`paceline.runtime.control.overlap` predicts.
Trees and heads go as chains do (--drafter tree, or a head's name); a head's pass is a call of its deepest graph.
--passes N lets drafting have so many passes a round whatever the clock says, from the moment when all is known that a
way looks at: hits then depend on the branches alone, also beside other work. The seconds then mean nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path

import numpy as np

import paceline.runtime.assemble as assemble
from paceline.bench_prompts import built_in_tasks, read_tasks
from paceline.runtime.beside import Lent, Meanwhile, Work, Worker
from paceline.runtime.contracts import Early
from paceline.runtime.control.overlap import Round
from paceline.runtime.loading import load
from paceline.runtime.manifest import read_manifest
from paceline.runtime.request import Sampling
from paceline.runtime.session import Session
from paceline.runtime.tree import TokenTree

WAYS = ("serial 1", "serial 2", "window", "fan", "weight", "exit")
_PATIENCE = 10.0
"""Seconds that work waits for what the target says early, in a pass that says it."""


class Timed(Worker):
    """Says when the target began and when it said what it says early."""

    passes = 0
    """Of the draft model in a round; 0: as many as fit."""

    def __init__(self) -> None:
        super().__init__()
        self.first = 0.0
        self.says = False
        """Whether the target says anything early."""
        self._begun = 0.0

    def later(self, work: Work, lent: Lent | None = None) -> None:
        """As many passes as it may have, once all is known that it looks at."""

        def counted(meanwhile: Meanwhile) -> None:
            work(_Counted(self, self.passes, self.says))

        super().later(counted if self.passes else work, lent)

    def begin(self, tree: TokenTree) -> None:
        """The target begins."""
        self._begun = time.perf_counter()
        super().begin(tree)

    def hear(self, early: Early) -> None:
        """Half of it is done."""
        self.first += time.perf_counter() - self._begun
        super().hear(early)


class _Counted:
    """A pass of the target that is over after so many looks, the first of which waits for what it says early."""

    def __init__(self, worker: Timed, looks: int, waits: bool) -> None:
        self._worker, self._looks, self._waits = worker, looks, waits

    @property
    def tree(self) -> TokenTree:
        """See `Meanwhile`."""
        return self._worker.tree

    @property
    def early(self) -> Early | None:
        """See `Meanwhile`."""
        return self._worker.early

    def over(self) -> bool:
        """See `Meanwhile`."""
        begun = time.perf_counter()
        while self._waits and self.early is None and time.perf_counter() - begun < _PATIENCE:
            time.sleep(1e-4)
        self._looks -= 1
        return self._looks < 0

    def left(self) -> float:
        """See `Meanwhile`: passes are counted, not timed."""
        return inf

    def wait(self) -> None:
        """See `Meanwhile`."""
        self._looks = 0


@dataclass(slots=True)
class Sums:
    """What a way came to over all answers; seconds."""

    rates: list[float] = field(default_factory=list)
    tokens: int = 0
    rounds: int = 0
    accepted: int = 0
    hits: int = 0
    misses: int = 0
    foreseen: int = 0
    hit_seconds: float = 0.0
    miss_seconds: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    judge: float = 0.0
    wait: float = 0.0
    first: float = 0.0
    same: int = 0
    answers: int = 0

    def add(self, session: Session, tokens: Sequence[int], seconds: float, first: float, same: bool) -> None:
        """One more answer."""
        stats = session.stats
        self.rates.append(len(tokens) / seconds)
        self.tokens, self.rounds = self.tokens + len(tokens), self.rounds + stats.rounds
        self.accepted += stats.accepted
        for name in ("draft", "verify", "judge", "wait"):
            setattr(self, name, getattr(self, name) + stats.seconds[name])
        if stats.beside is not None:
            for name in ("hits", "misses", "foreseen", "hit_seconds", "miss_seconds"):
                setattr(self, name, getattr(self, name) + getattr(stats.beside, name))
        self.first += first
        self.same, self.answers = self.same + same, self.answers + 1


def opened(bundle: Path, way: str, drafter: str, bundle_of: str | None) -> Session:
    """A session that drafts in this way, or plainly: "none"."""
    choices = {"threads": 1, "drafter": drafter}
    if way in ("serial 2", "none"):
        choices["threads"] = 2
    elif way != "serial 1":
        choices |= {"threads": 2, "mirror": "on", "mirror_branches": way}
    if bundle_of is not None:
        choices["drafter_bundle"] = bundle_of
    session = load(bundle, **choices)  # type: ignore[arg-type]
    beside = session._workshop.beside
    if isinstance(beside, Timed):
        beside.says = way == "exit"
    return session


def ask(session: Session, prompt: str, sampling: Sampling, most: int) -> tuple[list[int], float, float]:
    """Tokens, seconds after the prompt was read, and those of the target's first halves."""
    session.reset()
    beside = session._workshop.beside
    before = beside.first if isinstance(beside, Timed) else 0.0
    begun = time.perf_counter()
    if session.has_template:
        asked = session.chat(
            [{"role": "user", "content": prompt}], sampling=sampling, seed=1, max_tokens=most
        )
    else:
        asked = session.generate(prompt, sampling=sampling, seed=1, max_tokens=most)
    tokens = asked.read().tokens
    seconds = time.perf_counter() - begun - session.stats.seconds["prefill"]
    return tokens, seconds, (beside.first if isinstance(beside, Timed) else 0.0) - before


def table(sums: dict[str, Sums]) -> list[str]:
    """A line for each way."""
    lines = [
        "| | tokens/s | to serial 1 | to serial 2 | tokens a round | hits | foreseen | hit, miss, ms | hidden | "
        "first, rest, step, ideal, ms | predicted | same |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    one, two = sums["serial 1"], sums["serial 2"]
    serial = one.draft / one.rounds
    for way, found in sums.items():
        ratios = [
            float(np.median([a / b for a, b in zip(found.rates, other.rates, strict=True)]))
            for other in (one, two)
        ]
        tried = found.hits + found.misses
        cells = [
            way,
            f"{np.median(found.rates):.1f}",
            *(f"{ratio:.2f}" for ratio in ratios),
            f"{(found.accepted + found.rounds) / found.rounds:.2f}",
        ]
        if not tried:
            step = 1e3 * (found.draft + found.verify + found.judge + found.wait) / found.rounds
            cells += [
                "",
                "",
                f"{1e3 * found.draft / found.rounds:.2f}",
                "",
                f"0, {1e3 * found.verify / found.rounds:.2f}, {step:.2f}",
                "1" if found is one else "",
            ]
        else:
            cells += beside_cells(found, one, serial)
        lines.append("| " + " | ".join([*cells, f"{found.same} of {found.answers}"]) + " |")
    return lines


def beside_cells(found: Sums, one: Sums, serial: float) -> list[str]:
    """Of a way that drafts beside: hits to the predicted ratio. serial: seconds of drafting a round without."""
    tried, rounds = found.hits + found.misses, found.rounds
    on_hit = found.hit_seconds / max(found.hits, 1)
    on_miss = found.miss_seconds / max(found.misses, 1)
    hidden = 1 - on_hit / serial
    first, verify, wait = (seconds / rounds for seconds in (found.first, found.verify, found.wait))
    step = (found.draft + found.verify + found.judge + found.wait) / rounds
    model = Round(
        one.verify / one.rounds, first, verify - first, serial, wait, found.hits / tried, max(hidden, 0.0)
    )
    same_tokens = found.tokens / rounds / (one.tokens / one.rounds)
    return [
        f"{found.hits / tried:.0%}",
        f"{found.foreseen / tried:.0%}",
        f"{1e3 * on_hit:.2f}, {1e3 * on_miss:.2f}",
        f"{hidden:.0%}",
        f"{1e3 * first:.2f}, {1e3 * (verify - first):.2f}, {1e3 * step:.2f}, "
        f"{1e3 * (first + max(verify - first, serial)):.2f}",
        f"{model.gain * same_tokens:.2f}",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--prompts", type=Path, help="as `paceline bench --prompts`; default: the built-in ones"
    )
    parser.add_argument("--limit", type=int, default=6, help="prompts")
    parser.add_argument("--drafter", default="chain")
    parser.add_argument("--drafter-bundle")
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--temp", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--ways", default=",".join(WAYS[2:]))
    parser.add_argument("--passes", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    Timed.passes = given.passes
    assemble.Worker = Timed  # type: ignore[misc]
    tasks = read_tasks(given.prompts) if given.prompts else built_in_tasks()
    prompts = [task.turns[0] for task in tasks][: given.limit]
    sampling = Sampling(temperature=given.temp)
    ways = [*WAYS[:2], *given.ways.split(",")]
    if "exit" in ways and read_manifest(given.bundle).target.split is None:
        print(f"{given.bundle} has no split: exit is left out (paceline export BUNDLE OUT --split makes one)")
        ways.remove("exit")
    plain = opened(given.bundle, "none", "none", None)
    expected = {prompt: ask(plain, prompt, sampling, given.tokens)[0] for prompt in prompts}
    plain.close()
    sessions = {way: opened(given.bundle, way, given.drafter, given.drafter_bundle) for way in ways}
    for session in sessions.values():
        ask(session, prompts[0], sampling, 16)
    sums = {way: Sums() for way in ways}
    for turn in range(given.repeats * len(prompts)):
        prompt = prompts[turn % len(prompts)]
        for at in range(len(ways)):
            way = ways[(at + turn) % len(ways)]
            tokens, seconds, first = ask(sessions[way], prompt, sampling, given.tokens)
            sums[way].add(sessions[way], tokens, seconds, first, tokens == expected[prompt])
    print("\n".join(table(sums)))
    if given.json:
        given.json.write_text(json.dumps({way: asdict(found) for way, found in sums.items()}, indent=1))


if __name__ == "__main__":
    main()
