"""Typical acceptance (Medusa, arXiv 2401.10774): lossy, takes any drafted token that is likely enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paceline.runtime.contracts import Scored, Verdict
from paceline.runtime.rules.laws import LawMaker
from paceline.runtime.rules.walk import Walk
from paceline.runtime.tree import TokenTree


@dataclass(frozen=True, slots=True)
class Typical:
    """Accepts the likeliest child above `min(ceiling, share * exp(-entropy))`, else samples from the target.

    It changes the distribution: likely drafts are taken more often than the target would say them.
    """

    maker: LawMaker
    ceiling: float = 0.3
    share: float = 0.09
    lossless: bool = False

    def judge(
        self, tree: TokenTree, scored: Scored, history: Sequence[int], rng: np.random.Generator
    ) -> Verdict:
        """One row is read per accepted level, with the history that the path makes true."""
        walk = Walk(tree, scored, history)
        while True:
            law = self.maker.law(walk.row, walk.seen)
            entropy = -float(law.probs @ np.log(law.probs))
            chances = [(law.of(walk.token_of(child)), -child) for child in tree.children(walk.node)]
            chance, place = max(chances, default=(0.0, 0))
            if chance > min(self.ceiling, self.share * np.exp(-entropy)):
                walk.enter(-place)
                continue
            token = law.sample(rng)
            if not walk.follow(token):
                return walk.end(token)
