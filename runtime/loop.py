"""The speculative loop: propose, score, judge, commit, observe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from paceline.runtime.contracts import AcceptanceRule, Drafter, DraftLimit, Outcome, Scored, Target, Verdict
from paceline.runtime.tree import TokenTree


class Controller(Protocol):
    """Says before each round how much to draft, `room` tokens at most, and learns from what came of it."""

    def limit(self, room: int) -> DraftLimit:
        """The limit of the next round."""

    def learn(self, outcome: Outcome) -> None:
        """Follows every round."""


def read_prompt(target: Target, drafter: Drafter, tokens: Sequence[int], chunk: int) -> None:
    """Run every prompt token but the last; the drafter sees each chunk as a chain that was accepted whole."""
    for at in range(target.length, len(tokens) - 1, chunk):
        part = tokens[at : min(at + chunk, len(tokens) - 1)]
        scored = target.prefill(part)
        following = int(tokens[at + len(part)])
        drafter.observe(_accepted_chain(part, scored, following))


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
) -> Iterator[Outcome]:
    """Generate up to `room` tokens; each yielded round's tokens have been appended to `tokens`.

    `tokens[-1]` is the first root: the target holds every token but that one, here and at every yield.
    """
    end = len(tokens) + room
    while len(tokens) < end:
        tree = drafter.propose(tokens, controller.limit(end - len(tokens) - 1))
        scored = target.score(tree)
        verdict = rule.judge(tree, scored, tokens, rng)
        target.commit(verdict.path)
        outcome = Outcome(tree, scored, verdict)
        drafter.observe(outcome)
        controller.learn(outcome)
        tokens.extend(tree.tokens[list(verdict.path[1:])].tolist())
        tokens.append(verdict.next_token)
        yield outcome
