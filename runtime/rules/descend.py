"""The rule that asks the target first: choose as plain decoding would, then see whether that was drafted.

Lossless for any tree (SpecExec, arXiv 2406.02532); with shared noise its output is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from paceline.runtime.contracts import Logits, Scored, Verdict
from paceline.runtime.rules.walk import Walk
from paceline.runtime.tree import TokenTree

Choose = Callable[[Logits, Sequence[int], np.random.Generator], int]


@dataclass(frozen=True, slots=True)
class Descend:
    """Choose a token as plain decoding would and accept the child that equals it, for as long as one does.

    The output is what `choose` says whatever the tree holds.
    """

    choose: Choose
    lossless: bool = True

    def judge(
        self, tree: TokenTree, scored: Scored, history: Sequence[int], rng: np.random.Generator
    ) -> Verdict:
        """One row is read per accepted level, with the history that the path makes true."""
        walk = Walk(tree, scored, history)
        while True:
            token = self.choose(walk.row, walk.seen, rng)
            if not walk.follow(token):
                return walk.end(token)
