"""A path through a tree while it is being accepted, and the rule that asks the target first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from paceline.runtime.contracts import Logits, Scored, Verdict
from paceline.runtime.tree import TokenTree

Choose = Callable[[Logits, Sequence[int]], int]


class Walk:
    """Starts at the root. `seen` is the committed history and the accepted tokens after it."""

    __slots__ = ("_logits", "path", "seen", "tree")

    def __init__(self, tree: TokenTree, scored: Scored, history: Sequence[int]) -> None:
        self.tree = tree
        self.path = [0]
        self.seen = list(history)
        self._logits = scored.logits

    @property
    def node(self) -> int:
        """Where the walk stands."""
        return self.path[-1]

    @property
    def row(self) -> Logits:
        """float32[V]: what the target says about the token after this node."""
        row: Logits = self._logits[self.path[-1]]
        return row

    def row_of(self, node: int) -> Logits:
        """float32[V] of any node."""
        row: Logits = self._logits[node]
        return row

    def token_of(self, node: int) -> int:
        """The token at any node."""
        return int(self.tree.tokens[node])

    def drawn(self, node: int) -> list[int]:
        """The children that were sampled from the node's law, in the order of the draws."""
        if node not in self.tree.dists:
            return []
        return [child for child in self.tree.children(node) if self.tree.draw[child] >= 0]

    def enter(self, child: int) -> None:
        """Accept a child of the node."""
        self.path.append(child)
        self.seen.append(self.token_of(child))

    def follow(self, token: int) -> bool:
        """Accept the child that is this token; False where none is."""
        tree = self.tree
        for child in tree.children(self.path[-1]):
            if tree.tokens[child] == token:
                self.path.append(child)
                self.seen.append(token)
                return True
        return False

    def end(self, token: int) -> Verdict:
        """The walk stops here and `token` comes next."""
        tried = len(self.path) - 1 + bool(self.tree.children(self.path[-1]))
        return Verdict(tuple(self.path), token, tried)


@dataclass(frozen=True, slots=True)
class Descend:
    """Choose a token as plain decoding would and accept the child that equals it, for as long as one does.

    Lossless for any tree (SpecExec, arXiv 2406.02532): the output is what `choose` says, whatever the tree holds.
    """

    choose: Choose
    lossless: bool = True

    def judge(
        self, tree: TokenTree, scored: Scored, history: Sequence[int], rng: np.random.Generator
    ) -> Verdict:
        """One row is read per accepted level, with the history that the path makes true."""
        walk = Walk(tree, scored, history)
        while True:
            token = self.choose(scored.logits[walk.path[-1]], walk.seen)
            if not walk.follow(token):
                return walk.end(token)
