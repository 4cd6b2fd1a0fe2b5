"""Which graph of a head is worth running, a chain's or a tree's: by price, and by what each brought."""

from __future__ import annotations

from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.drafters.ranks import Ranks
from paceline.runtime.drafters.shapes import reaches
from paceline.runtime.model.head import Head, Shape
from paceline.runtime.model.streams import Streams
from paceline.runtime.tree import proposers

_STRENGTH = 20.0
"""Accepted tokens that the chances of ranks count as, against what a graph's trees brought."""
_FADE = 0.99
_REFRESH = 16
"""Rounds after which the chances of nodes are computed anew."""


class Offers:
    """Expects of each graph the accepted tokens of its best nodes, less what these and drafting cost.

    Chances are those of depth and rank, times what the graph's trees brought over what was expected of them: a branch
    beside the chain is accepted less often than its rank alone promises. Where the time of a tree was not measured each
    of its parents costs what a level of a chain does.
    """

    def __init__(self, head: Head | Streams, ranks: Ranks) -> None:
        self._head, self._ranks = head, ranks
        self._brought: dict[Shape | None, list[float]] = {}  # accepted, expected; None stands for all chains
        self._reaches: dict[Shape, list[float]] = {}
        self._rounds, self._last = 0, Shape(0, 0)

    def best(self, limit: DraftLimit, levels: int, most: int) -> Shape | None:
        """The best tree of at most `most` levels; None where the chain of so many levels is worth more."""
        trees = self._head.trees
        if not trees:
            return None
        chain = Shape(levels, 1)
        best, worth = chain, self._worth(chain, limit, levels)
        for shape in trees:
            if shape.depth <= most:
                cost = self._head.worth.get(shape, shape.depth * shape.width)
                value = self._worth(shape, limit, cost)
                if value > worth:
                    best, worth = shape, value
        self._last = best
        return None if best is chain else best

    def learn(self, outcome: Outcome, source: str) -> None:
        """What the last graph that was chosen brought, of nodes of this source."""
        shape, self._last = self._last, Shape(0, 0)
        self._rounds += 1
        if self._rounds % _REFRESH == 0:
            self._reaches.clear()
        if not shape.depth:
            return
        sources = outcome.tree.sources
        own = sum([source in proposers(name) for name in sources])
        counts = self._of(shape)
        counts[0] = _FADE * counts[0] + sum([source in proposers(sources[n]) for n in outcome.verdict.path])
        counts[1] = _FADE * counts[1] + sum(self._reach(shape)[:own])

    def _worth(self, shape: Shape, limit: DraftLimit, levels: float) -> float:
        accepted, expected = self._of(shape)
        times, total = (accepted + _STRENGTH) / (expected + _STRENGTH), -limit.step_price * levels
        for number, chance in enumerate(self._reach(shape)[: limit.nodes], 1):
            worth = times * chance - limit.price(number)
            if worth <= 0:
                break
            total += worth
        return total

    def _of(self, shape: Shape) -> list[float]:
        return self._brought.setdefault(shape if shape.width > 1 else None, [0.0, 0.0])

    def _reach(self, shape: Shape) -> list[float]:
        if shape not in self._reaches:
            by_rank = [self._ranks.at(level + 1) for level in range(shape.depth)]
            self._reaches[shape] = reaches(by_rank, shape.width)
        return self._reaches[shape]
