"""What is proposed of a grid: its likeliest way, or its best nodes; and the passes that this still takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import nlargest
from typing import Protocol

from paceline.memory.model import FRONTIER
from paceline.runtime.contracts import DraftLimit
from paceline.runtime.drafters.branches import WORTH, WORTH_IN_TREES, Branches
from paceline.runtime.drafters.draw import Acceptance, Draw
from paceline.runtime.drafters.grid import ROOT, Grid
from paceline.runtime.tree import TokenTree


class Shape(Protocol):
    """A way to propose."""

    @property
    def worth(self) -> Mapping[Branches, Callable[[Grid, int], float]]:
        """What a node is worth to be looked at beside the target's pass, 0 for nothing."""

    def grown(self, grid: Grid, known: Acceptance, draw: Draw, limit: DraftLimit, depth: int) -> TokenTree:
        """The proposal, of at most `depth` levels; the grid is fed as far as that is worth it."""


class Chains:
    """The likeliest way down, as far as it is worth its nodes, and the passes that it still takes."""

    worth = WORTH

    def __init__(self, source: str) -> None:
        self._source = source

    def grown(self, grid: Grid, known: Acceptance, draw: Draw, limit: DraftLimit, depth: int) -> TokenTree:
        """A chain."""
        node, chain, scores, chance = ROOT, [grid.tokens[ROOT]], [1.0], 1.0
        while len(chain) <= depth and grid.children.get(node):
            best, level = grid.children[node][0], len(chain)
            chance *= known.chance(level, grid.scores[best])
            if chance < limit.price(level):
                break
            node = best
            chain.append(grid.tokens[node])
            scores.append(grid.scores[node])
            if node in grid.fed or level == depth:
                continue
            following = chance * known.usual(level + 1)
            if following < limit.step_price + limit.price(level + 1) or not grid.feed([node], draw):
                break
        return TokenTree.chain(chain, self._source, None, scores)


class Trees:
    """Level by level what follows the best nodes of the level before; of all the best stay, as many as are worth their
    price. What was looked at before takes no pass; a level that does is run while it promises more than it costs."""

    worth = WORTH_IN_TREES

    def __init__(self, source: str) -> None:
        self._source = source

    def grown(self, grid: Grid, known: Acceptance, draw: Draw, limit: DraftLimit, depth: int) -> TokenTree:
        """A tree whose nodes were all picked."""
        reached = {ROOT: 1.0}
        level = self._named(grid, known, reached, [ROOT])
        for _ in range(1, depth):
            best = set(nlargest(FRONTIER, level, key=reached.__getitem__))
            gain = self._gain(grid, known, limit, reached, best)
            if gain <= 0:
                break
            if gain > limit.step_price:
                grid.feed([n for n in level if n in best - grid.fed and grid.feedable(n)], draw)
            level = self._named(grid, known, reached, [node for node in level if node in best & grid.fed])
        best = set(_best(reached, limit))
        chosen = [node for node in reached if node in best]
        at = {node: place for place, node in enumerate([ROOT, *chosen])}
        return TokenTree.picked(
            [grid.tokens[node] for node in at],
            [-1, *(at[grid.parents[node]] for node in chosen)],
            ["", *[self._source] * len(chosen)],
            [grid.scores[node] for node in at],
        )

    def _named(
        self, grid: Grid, known: Acceptance, reached: dict[int, float], nodes: Sequence[int]
    ) -> list[int]:
        """What the model named behind these nodes; their chances to be reached are added."""
        found = list[int]()
        for node in nodes:
            best = 1.0
            for child in grid.children[node]:
                if own := grid.scores[child]:
                    # A later sibling is never thought better than an earlier one.
                    best = min(best, known.chance(grid.depths[child], own))
                    reached[child] = reached[node] * best
                    found.append(child)
        return found

    def _gain(
        self,
        grid: Grid,
        known: Acceptance,
        limit: DraftLimit,
        reached: Mapping[int, float],
        nodes: Iterable[int],
    ) -> float:
        """What usually follows these nodes brings: new nodes less their price, or less those that they stand in for."""
        chosen, gain = _best(reached, limit), 0.0
        expected = [reached[node] * known.usual(grid.depths[node] + 1) for node in nodes]
        for number, value in enumerate(sorted(expected, reverse=True), len(chosen) + 1):
            if number <= limit.nodes:
                gain += max(value - limit.price(number), 0.0)
            elif chosen:
                gain += max(value - reached[chosen.pop()], 0.0)
        return gain


def _best(reached: Mapping[int, float], limit: DraftLimit) -> list[int]:
    """The best nodes that are worth it, best first: none is worth more than its parent, which stands before it."""
    order = sorted(reached, key=lambda node: -reached[node])[1 : limit.nodes + 1]
    return [node for rank, node in enumerate(order, 1) if reached[node] >= limit.price(rank)]
