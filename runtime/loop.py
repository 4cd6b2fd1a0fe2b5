"""The speculative loop: propose, score, judge, commit, observe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter as clock
from typing import Protocol

import numpy as np

from paceline.memory.room import Room
from paceline.runtime.beside import Beside
from paceline.runtime.contracts import (
    AcceptanceRule,
    Drafter,
    DraftLimit,
    Outcome,
    Round,
    Scored,
    Target,
    Verdict,
)
from paceline.runtime.control.trace import Trace
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree


class Controller(Protocol):
    """Says before each round how much to draft, below `ceiling` where there is one, and learns from what came of it.

    What it learns of costs and acceptance stays from one answer to the next.
    """

    ceiling: Room | None

    def begin(self, request: Request, reused: int) -> None:
        """An answer begins; `reused` tokens of its prompt the drafters may have seen before."""

    def limit(self, room: int) -> DraftLimit:
        """The limit of the next round, at most `room` levels."""

    def learn(self, done: Round) -> None:
        """Follows every round."""

    def moved(self, length: int) -> None:
        """The context slid: from here on the text has this many tokens."""

    def finish(self) -> Trace | None:
        """The answer has ended: what was chosen, None where nothing was."""


def read_prompt(
    target: Target, drafter: Drafter, tokens: Sequence[int], chunk: int
) -> Iterator[tuple[float, float]]:
    """Run every prompt token but the last; the drafter sees each chunk as a chain that was accepted whole.

    Yields the seconds of target and drafter after each chunk.
    """
    for at in range(target.length, len(tokens) - 1, chunk):
        part = tokens[at : min(at + chunk, len(tokens) - 1)]
        begun = clock()
        scored = target.prefill(part)
        passed = clock()
        drafter.observe(_accepted_chain(part, scored, int(tokens[at + len(part)])))
        yield passed - begun, clock() - passed


def _accepted_chain(tokens: Sequence[int], scored: Scored, following: int) -> Outcome:
    whole = tuple(range(len(tokens)))
    return Outcome(TokenTree.chain(tokens), scored, Verdict(whole, following, 0))


def decode(
    target: Target,
    drafter: Drafter,
    rule: AcceptanceRule,
    controller: Controller,
    tokens: list[int],
    room: int,
    rng: np.random.Generator,
    beside: Beside | None = None,
) -> Iterator[Round]:
    """Generate up to `room` tokens; each yielded round's tokens have been appended to `tokens`.

    `tokens[-1]` is the first root: the target holds every token but that one, here and at every yield. beside: where
    drafters leave work for the time of the target's pass; it rests while the drafter is asked. Who gave it ends it.
    """
    end = len(tokens) + room
    while len(tokens) < end:
        limit = controller.limit(end - len(tokens) - 1)
        waited = 0.0 if beside is None else beside.rest()
        begun = clock()
        tree = drafter.propose(tokens, limit)
        proposed = clock()
        if beside is not None:
            beside.begin(tree)
        scored = target.score(tree)
        passed = clock()
        verdict = rule.judge(tree, scored, tokens, rng)
        judged = clock()
        target.commit(verdict.path)
        kept = clock()
        outcome = Outcome(tree, scored, verdict)
        drafter.observe(outcome)
        learnt = clock()
        times = begun, proposed, passed, judged, kept, learnt
        verifying = passed - proposed + kept - judged
        done = Round(outcome, proposed - begun + learnt - kept, verifying, judged - passed, waited, times)
        controller.learn(done)
        tokens.extend(outcome.tokens)
        yield done
