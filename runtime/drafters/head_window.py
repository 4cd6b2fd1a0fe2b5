"""What may come of the tree that a target looks at, for a head: which ways are worth drafting behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from paceline.runtime.contracts import Early
from paceline.runtime.drafters.branches import FAN, Branches
from paceline.runtime.tree import TokenTree

Way = tuple[int, ...]
"""Tokens behind the root."""
_UNSAID = 0.5
"""The chance of the likeliest token behind a node of which nothing was said yet, and of a node without an estimate."""


class Window:
    """Ways through a tree, and the tokens that may follow each of its nodes.

    A branch is one token behind a node, which is not looked at itself. It is worth the chance that the text goes that
    far and on with it. Behind a node of which nothing was said a head is run to say it.
    """

    def __init__(self, tree: TokenTree, branches: Branches) -> None:
        self.tree = tree
        parents, tokens = tree.parents.tolist(), tree.tokens.tolist()
        scores = tree.scores or (0.0,) * len(tree)
        self._parents, self._worth = parents, _WORTH[branches]
        self._ways: list[Way] = [()]
        self._reached = [1.0]
        for node in range(1, len(parents)):
            self._ways.append((*self._ways[parents[node]], tokens[node]))
            self._reached.append(self._reached[parents[node]] * (scores[node] or _UNSAID))
        self._at = {way: node for node, way in enumerate(self._ways)}
        self._said: dict[int, Sequence[tuple[int, float]]] = {}
        self.done: set[Way] = set()

    def first(self) -> Way:
        """The likeliest way through the tree: a chain behind it says what may follow all nodes on it."""
        node = 0
        while below := [child for child in range(1, len(self._ways)) if self._parents[child] == node]:
            node = max(below, key=self._reached.__getitem__)
        return self._ways[node]

    def holds(self, way: Way) -> bool:
        """Whether it is one through the tree."""
        return way in self._at

    def names(self, way: Way) -> bool:
        """Whether it is one through the tree, or its last token was named behind one."""
        said = self._said.get(self._at.get(way[:-1], -1), ())
        return way in self._at or way[-1] in [token for token, _ in said]

    def say(self, way: Way, named: Sequence[tuple[int, float]]) -> None:
        """What a head thinks may follow a way, the likeliest first, where it is one through the tree."""
        node = self._at.get(way)
        if node is not None:
            self._said.setdefault(node, named)

    def hear(self, early: Early) -> None:
        """What the target says early of every node, as its rule will choose."""
        for node, (named, rest) in enumerate(early.told()):
            self._said[node] = named
            known = dict(named)
            for child in range(node + 1, len(self._ways)):
                if self._parents[child] == node:
                    self._reached[child] = self._reached[node] * known.get(self._ways[child][-1], rest)

    def next(self, most: int) -> tuple[Way, float] | None:
        """The way that is worth most and was not drafted behind, of less than `most` tokens, and what it is worth; None
        where none is worth anything."""
        best, worth = None, 0.0
        for node, way in enumerate(self._ways):
            if len(way) + 1 >= most:
                continue
            if node not in self._said:
                branches = [(way, self._worth(self._reached[node] * _UNSAID, 0))]
            else:
                others = [
                    (token, chance) for token, chance in self._said[node] if (*way, token) not in self._at
                ]
                branches = [
                    ((*way, token), self._worth(self._reached[node] * chance, rank))
                    for rank, (token, chance) in enumerate(others)
                ]
            for branch, value in branches:
                if value > worth and branch not in self.done:
                    best, worth = branch, value
        return None if best is None else (best, worth)


def _in_fan(chance: float, rank: int) -> float:
    """As many corrections of each place, whatever their chances: first the first ones."""
    return 1 / (1 + rank) if rank < FAN else 0.0


_WORTH: Mapping[Branches, Callable[[float, int], float]] = {
    "exit": lambda chance, rank: chance,
    "weight": lambda chance, rank: chance,
    "fan": _in_fan,
    "window": lambda chance, rank: 0.0,
}
"""Of a branch, by its chance and its place among those behind the same node: nothing where all is to be accepted, which
the first way covers."""
