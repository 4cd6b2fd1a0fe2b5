"""How often the first, second, ... choice of a head is right at each depth: as measured before and learnt since."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.runtime.contracts import Outcome
from paceline.runtime.drafters.draw import USUAL
from paceline.runtime.part import CHILDREN
from paceline.runtime.tree import proposers

DEPTHS = 8
"""Levels from here on are judged together."""
_STRENGTH = 12.0
"""Observations that what was measured before counts as."""
_MEMORY = 200.0
"""Observations after which older ones fade."""


class Ranks:
    """The chance of a child by depth and rank among its siblings, given that its parent was accepted.

    measured: by depth and rank, as training did. usual: by depth, of first choices, where nothing else is known; each
    later choice then gets half of what is left.
    """

    def __init__(self, measured: Sequence[Sequence[float]], usual: Sequence[float]) -> None:
        self._true: list[list[float]] = []
        for depth in range(DEPTHS):
            known = list(measured[min(depth, len(measured) - 1)][:CHILDREN]) if measured else []
            if not known:
                known = [usual[min(depth, len(usual) - 1)] if usual else USUAL]
            while len(known) < CHILDREN:
                known.append(max(1 - sum(known), 0.0) / 2)
            self._true.append([_STRENGTH * chance for chance in known])
        self._tried = [[_STRENGTH] * CHILDREN for _ in range(DEPTHS)]

    def at(self, depth: int) -> list[float]:
        """The chances of all ranks at a depth, 1 for children of the root; a later rank is never thought better."""
        at, best, found = min(depth, DEPTHS) - 1, 1.0, []
        for true, tried in zip(self._true[at], self._tried[at], strict=True):
            best = min(best, true / tried)
            found.append(best)
        return found

    def learn(self, outcome: Outcome, source: str) -> None:
        """Every child of an accepted node was judged; those of this source count, by their order among themselves."""
        if not len(outcome.scored.logits):
            return
        level = {node: at for at, node in enumerate(outcome.verdict.path)}
        next_rank: dict[int, int] = {}
        sources = outcome.tree.sources
        for node, parent in enumerate(outcome.tree.parents.tolist()):
            if parent not in level or (sources[node] != source and source not in proposers(sources[node])):
                continue
            rank, depth = next_rank.get(parent, 0), min(level[parent], DEPTHS - 1)
            next_rank[parent] = rank + 1
            if rank < CHILDREN:
                true, tried = self._true[depth], self._tried[depth]
                true[rank] += node in level
                tried[rank] += 1.0
                if tried[rank] > _MEMORY:
                    true[rank], tried[rank] = true[rank] / 2, tried[rank] / 2
