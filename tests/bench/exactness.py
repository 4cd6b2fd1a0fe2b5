"""Counts tokens that speculation changes: prompts x drafters x tree widths x threads against plain decoding.

    python tests/bench/exactness.py BUNDLE [--prompts 500] [--tokens 24] [--widths 1,2,4,8,16,32,64] [--threads 1,2]
    python tests/bench/exactness.py BUNDLE --mirror window,fan,weight,exit --threads 2 --widths 4 --drafters chain

Plain decoding with the first thread count is the reference, and plain decoding with every other thread count is
compared too. A width is the most drafted tokens of a round. Drafters are all that the bundle has, its heads too,
and fusions of them. With --mirror they go on beside the target, in each of these ways. Above --temperature 0 every
answer has a seed, and coupled sampling must give the same tokens.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paceline.runtime.assemble import Drafting, Workshop
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.drafters.names import Name
from paceline.runtime.loading import load
from paceline.runtime.request import Sampling
from paceline.runtime.session import Session

_BEGINNINGS = ("Once upon a time, a", "One day, the", "There was a", "In a small town, the", "Every night, a")
_HEROES = "dog cat princess frog dragon robot bird bear rabbit mouse".split()
_DOINGS = (
    "went to the park,found a red ball,saw a big tree,was very sad,wanted some cake,lost the key,met a friend,"
    "played in the rain,could not sleep,had a new hat"
).split(",")


def openings(count: int) -> list[str]:
    """Different openings of stories, at most 500."""
    every = [f"{a} {b} {c}" for c in _DOINGS for b in _HEROES for a in _BEGINNINGS]
    return every[:count]


def drafters_of(session: Session) -> list[str]:
    """Every drafter of the bundle, and fusions of them."""
    single = [name for name in session.drafter_names() if name != "none"]
    return [*single, "lookup,recycle", *(["chain,lookup"] if "chain" in single else []), "auto"]


def answers(
    session: Session, prompts: Sequence[str], drafter: str, tokens: int, temperature: float
) -> Iterator[list[int]]:
    """Token ids for each prompt; above temperature 0 with a seed for each, on which alone they depend."""
    session.set_drafter(drafter)
    sampling = Sampling(temperature=temperature)
    for seed, prompt in enumerate(prompts):
        told = session.generate(prompt, max_tokens=tokens, sampling=sampling, seed=seed)
        yield [e.token for e in told if e.token is not None]


def fix_width(session: Session, width: int) -> None:
    """Let every round draft up to `width` tokens, as deep as it likes; `auto` chooses for itself."""
    made = vars(Workshop).get("unfixed", Workshop.drafting)

    def drafting(self: Workshop, name: Name) -> Drafting:
        found: Drafting = made(self, name)
        return found if name.auto else replace(found, control=FixedLimit(width, min(width, 16)))

    Workshop.unfixed, Workshop.drafting = made, drafting  # type: ignore[attr-defined, method-assign]
    session.set_drafter("none")
    session._draftings.clear()  # the session keeps a drafter, with the width that it was made with


def opened(bundle: Path, threads: int, way: str) -> Session:
    """A session; way: what its draft models look at beside the target, where they do."""
    mirror: dict[str, Any] = {"mirror": "on", "mirror_branches": way} if way else {}
    return load(bundle, drafter="none", threads=threads, max_nodes=64, draft_depth=16, **mirror)


def main() -> int:
    """Print one line for each drafter and width; the exit status is 1 if any token differs."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parse.add_argument("bundle", type=Path)
    parse.add_argument("--prompts", type=int, default=500)
    parse.add_argument("--tokens", type=int, default=24)
    parse.add_argument("--widths", default="1,2,4,8,16,32,64")
    parse.add_argument("--threads", default="1,2")
    parse.add_argument("--drafters", default="", help="joined by /; heads by their names or the word head")
    parse.add_argument("--temperature", type=float, default=0.0)
    parse.add_argument("--mirror", default="", help="ways to draft beside the target, joined by commas")
    chosen = parse.parse_args()
    prompts = openings(chosen.prompts)
    expected: list[list[int]] = []
    differing = compared = 0
    begun = time.monotonic()
    ways = ["", *filter(None, chosen.mirror.split(","))]
    for threads, way in ((int(t), way) for t in chosen.threads.split(",") for way in ways):
        with opened(chosen.bundle, threads, way) as session:
            plain = list(answers(session, prompts, "none", chosen.tokens, chosen.temperature))
            expected = expected or plain
            runs = [("none", 0)]
            drafters = chosen.drafters.split("/") if chosen.drafters else drafters_of(session)
            runs += [(d, int(w)) for d in drafters for w in chosen.widths.split(",")]
            for drafter, width in runs:
                if width:
                    fix_width(session, width)
                given = (
                    answers(session, prompts, drafter, chosen.tokens, chosen.temperature)
                    if width
                    else iter(plain)
                )
                wrong = count = rounds = drafted = 0
                for meant, got in zip(expected, given, strict=True):
                    count += len(meant)
                    rounds += session.stats.rounds
                    drafted += session.stats.drafted
                    longest = max(len(meant), len(got))
                    padded = [np.array(x + [-1] * (longest - len(x))) for x in (meant, got)]
                    wrong += int((padded[0] != padded[1]).sum())
                differing, compared = differing + wrong, compared + count
                print(
                    f"{threads} threads  {way:<6}  {drafter:<24} width {width:>2}  {wrong:>4} of {count} tokens differ"
                    f"  {count / max(1, rounds):.2f} tokens a round, {drafted / max(1, rounds):.1f} drafted",
                    flush=True,
                )
    minutes = (time.monotonic() - begun) / 60
    print(f"{differing} of {compared} tokens differ, {len(prompts)} prompts, {minutes:.1f} minutes")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
