"""Rounds of toy models of which every outcome is enumerated, and how far their law is from the target's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from branches import Branches, outcomes
from toy_trees import Rows, exact_law, picked_tree, rows_of, score
from toys import TableModel

from paceline.runtime.contracts import AcceptanceRule
from paceline.runtime.request import Request, Sampling
from paceline.runtime.rules.laws import LawMaker
from paceline.runtime.rules.registry import make_rule
from paceline.runtime.tree import TokenTree

HISTORY = [1, 2, 0]
COUNT = 3
SAMPLINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.8, top_k=2),
    Sampling(temperature=1.2, top_p=0.8, presence_penalty=0.7, repetition_penalty=1.3),
]
Propose = Callable[["World", Branches], TokenTree]


@dataclass(frozen=True)
class World:
    vocab: int
    accept: str
    seed: int
    sampling: Sampling = SAMPLINGS[0]

    @property
    def maker(self) -> LawMaker:
        return LawMaker(self.sampling, 1)

    def rows(self, side: int) -> Rows:
        return rows_of(TableModel(self.vocab, order=2, sharpness=1.5, seed=2 * self.seed + side))

    def rule(self) -> AcceptanceRule:
        return make_rule(Request(self.sampling, self.accept, 0, 0, 1))

    def picks(self, nodes: int) -> TokenTree:
        return picked_tree(np.random.default_rng(self.seed), HISTORY[-1], self.vocab, nodes)


def error(world: World, propose: Propose, rule: AcceptanceRule | None = None) -> float:
    """Total variation between the law of the first tokens of a round and the target's."""
    target, judge = world.rows(0), rule or world.rule()
    found = np.zeros((world.vocab,) * COUNT)
    scale = 0.0

    def run(branches: Branches) -> tuple[int, ...]:
        tree = propose(world, branches)
        verdict = judge.judge(tree, score(target, tree, HISTORY), HISTORY, branches)  # type: ignore[arg-type]
        return (*(int(tree.tokens[node]) for node in verdict.path[1:]), verdict.next_token)

    for chance, words in outcomes(run):
        scale += chance
        head = words[:COUNT]
        rest = exact_law(world.maker, target, [*HISTORY, *head], world.vocab, COUNT - len(head))
        found[head] += chance * rest.reshape((world.vocab,) * (COUNT - len(head)))
    assert scale == pytest.approx(1, abs=1e-9)
    exact = exact_law(world.maker, target, HISTORY, world.vocab, COUNT)
    return 0.5 * float(np.abs(found.ravel() - exact).sum())
