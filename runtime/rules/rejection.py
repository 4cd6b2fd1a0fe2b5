"""Rules that test a drafted token against the law it was sampled from.

Recursive rejection without replacement (arXiv 2402.14160, 2402.12374); block verification (arXiv 2403.10444).
Both need every draw: a drafter that drops a drawn token after seeing it must propose picks instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paceline.runtime.contracts import Scored, Verdict
from paceline.runtime.law import Law
from paceline.runtime.rules.laws import LawMaker
from paceline.runtime.rules.walk import Walk
from paceline.runtime.tree import TokenTree


@dataclass(frozen=True, slots=True)
class Rejection:
    """Drawn children are tested in turn; what they leave of the law is sampled, and may be a picked child."""

    maker: LawMaker
    lossless: bool = True

    def judge(
        self, tree: TokenTree, scored: Scored, history: Sequence[int], rng: np.random.Generator
    ) -> Verdict:
        """One row is read per accepted level, with the history that the path makes true."""
        walk = Walk(tree, scored, history)
        while True:
            law = _test_drawn(walk, self.maker.law(walk.row, walk.seen), rng)
            if law is None:
                continue
            token = law.sample(rng)
            if not walk.follow(token):
                return walk.end(token)


@dataclass(frozen=True, slots=True)
class BlockVerification:
    """A chain of single draws is judged as one block, which keeps at least as much as token by token.

    Elsewhere (several draws at a node, or picks) it is `Rejection`. Picks beside the chain stay in the game.
    """

    maker: LawMaker
    lossless: bool = True

    def judge(
        self, tree: TokenTree, scored: Scored, history: Sequence[int], rng: np.random.Generator
    ) -> Verdict:
        """The whole drawn chain is read, each row with its own prefix."""
        walk = Walk(tree, scored, history)
        while True:
            law, whole = self._take_chain(walk, rng)
            left = _test_drawn(walk, law, rng) if whole else law
            if left is None:
                continue
            token = left.sample(rng)
            if not walk.follow(token):
                return walk.end(token)

    def _take_chain(self, walk: Walk, rng: np.random.Generator) -> tuple[Law, bool]:
        """Accept a part of the drawn chain that starts here.

        Returns the law of the token after that part, and whether the part is the whole chain.
        """
        nodes, laws, weights = self._weigh_chain(walk)
        drawn_at = (walk.node, *nodes)

        def left(i: int) -> tuple[float, Law | None]:
            return laws[i].excess(walk.tree.dists[drawn_at[i]], weights[i])

        taken = 0
        for i in range(1, len(nodes) + 1):
            weight = weights[i]
            if i < len(nodes) and weight < 1:
                mass = left(i)[0]
                weight = mass / (mass + 1 - weight)
            if rng.random() < weight:
                taken = i  # and on: a later token may carry the whole block up to it
        for node in nodes[:taken]:
            walk.enter(node)
        if taken == len(nodes):
            return laws[taken], True
        return left(taken)[1] or laws[taken], False

    def _weigh_chain(self, walk: Walk) -> tuple[list[int], list[Law], list[float]]:
        """The n nodes of the drawn chain below the walk, n+1 laws of the target, n+1 acceptance weights."""
        node, seen = walk.node, list(walk.seen)
        nodes: list[int] = []
        laws, weights = [self.maker.law(walk.row, seen)], [1.0]
        while len(drawn := walk.drawn(node)) == 1:
            token = walk.token_of(drawn[0])
            ratio = laws[-1].of(token) / _drawn_with(walk.tree.dists[node], token)
            weights.append(min(1.0, weights[-1] * ratio))
            node = drawn[0]
            nodes.append(node)
            seen.append(token)
            laws.append(self.maker.law(walk.row_of(node), seen))
        return nodes, laws, weights


def _test_drawn(walk: Walk, target: Law, rng: np.random.Generator) -> Law | None:
    """Test the drawn children; None where one was accepted, else the law that is left of the target's."""
    draft = walk.tree.dists.get(walk.node)
    for child in walk.drawn(walk.node):
        if draft is None:
            break
        token = walk.token_of(child)
        left = None
        if rng.random() * _drawn_with(draft, token) >= target.of(token):
            left = target.excess(draft)[1]
        if left is None:  # accepted, or the two laws differ by rounding only
            walk.enter(child)
            return None
        target, draft = left, draft.without(token)
    return target


def _drawn_with(draft: Law, token: int) -> float:
    prob = draft.of(token)
    if prob <= 0:
        raise ValueError(f"token {token} is marked as drawn from a law that cannot give it")
    return prob
