"""Rounds of a toy target for the laws: what is drafted there, and drafters that can be watched or spoilt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from law_subjects import SUBJECTS, VOCAB
from toys import TableModel, TableTarget

from paceline.runtime.contracts import Drafter, DraftLimit, Outcome, Scored
from paceline.runtime.loop import decode, read_prompt
from paceline.runtime.request import Request, Sampling
from paceline.runtime.rules.registry import make_rule
from paceline.runtime.tree import TokenTree

GREEDY = Request(Sampling(), "coupled", 0, 0, 1)
WIDE = DraftLimit(12, 5)
every_drafter = pytest.mark.parametrize("name", list(SUBJECTS))


@dataclass
class RandomLimits:
    """A controller that asks for something else every round, at other prices or, half the time, at none."""

    rng: np.random.Generator

    def limit(self, room: int) -> DraftLimit:
        prices = tuple(sorted(self.rng.uniform(0.0, 0.5, 4))) if self.rng.random() < 0.5 else (0.0,)
        nodes, depth = int(self.rng.integers(0, 13)), min(int(self.rng.integers(0, 6)), max(room, 0))
        return DraftLimit(nodes, depth, prices[0] / 2, prices[-1], prices[:-1])

    def learn(self, outcome: Outcome) -> None:
        pass


class Wrapped:
    """A drafter whose calls can be watched or spoilt by a subclass of one test."""

    def __init__(self, inner: Drafter) -> None:
        self.inner = inner
        self.name, self.needs = inner.name, inner.needs

    def footprint(self, limit: DraftLimit) -> int:
        return self.inner.footprint(limit)

    def begin(self, request: Request) -> None:
        self.inner.begin(request)

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        return self.inner.propose(tokens, limit)

    def observe(self, outcome: Outcome) -> None:
        self.inner.observe(outcome)

    def reset(self) -> None:
        self.inner.reset()


def world(seed: int, order: int = 2) -> TableModel:
    return TableModel(VOCAB, order=order, sharpness=2.5, seed=seed)


def prompt_of(seed: int, length: int = 9) -> list[int]:
    return np.random.default_rng([seed, 7]).integers(0, VOCAB, length).tolist()


def rounds(
    drafter: Drafter, seed: int, room: int, request: Request = GREEDY, rng: np.random.Generator | None = None
) -> Iterator[tuple[list[int], Outcome]]:
    """Decode; yields the tokens so far with each outcome."""
    target, tokens = TableTarget(world(seed)), prompt_of(seed)
    drafter.begin(request)
    list(read_prompt(target, drafter, tokens, 4))
    limits = RandomLimits(np.random.default_rng([seed, 3]))
    rng = rng or np.random.default_rng([seed, 4])
    for done in decode(target, drafter, make_rule(request), limits, tokens, room, rng):
        yield tokens, done.outcome


def text(drafter: Drafter, seed: int, room: int, request: Request = GREEDY) -> list[int]:
    *_, (tokens, _) = rounds(drafter, seed, room, request)
    return tokens[: 9 + room]


def same(one: TokenTree, other: TokenTree) -> bool:
    return (
        one.tokens.tolist() == other.tokens.tolist()
        and one.parents.tolist() == other.parents.tolist()
        and one.sources == other.sources
        and one.draw.tolist() == other.draw.tolist()
    )


def scored(tree: TokenTree, seed: int) -> Scored:
    rng = np.random.default_rng([seed, len(tree)])
    return Scored(rng.normal(size=(len(tree), VOCAB)).astype(np.float32))
