"""Which nodes of a drafted tree are worth it: by their own chances, or by those of their depth and rank alone."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush, nlargest
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from paceline.runtime.contracts import DraftLimit
from paceline.runtime.model.head import Branches, Floats

Chances = Sequence[Sequence[float]]
"""By level and rank, of a child whose parent is accepted; no rank is better than the one before."""


class Node(NamedTuple):
    """One that was chosen. parent: among those chosen, 0 is the root and the first one chosen is 1."""

    parent: int
    level: int
    rank: int


def best_product(chances: Chances, limit: DraftLimit) -> list[Node]:
    """The best nodes where all parents of a level have the same law: best first, as many as are worth their price."""
    found: list[Node] = []
    heap = [(-chances[0][0], 0, 0, 0, 1.0)] if chances else []
    while heap and len(found) < limit.nodes:
        less, level, rank, parent, above = heappop(heap)
        if -less < limit.price(len(found) + 1) or not less:
            break
        found.append(Node(parent, level, rank))
        if rank + 1 < len(chances[level]):
            heappush(heap, (-above * chances[level][rank + 1], level, rank + 1, parent, above))
        if level + 1 < len(chances):
            heappush(heap, (less * chances[level + 1][0], level + 1, 0, len(found), -less))
    return found


def best_branches(
    found: Branches, chances: Floats, width: int, limit: DraftLimit
) -> tuple[list[int], list[int]]:
    """The best nodes of a tree whose parents differ: their places among all tokens, ascending, and their parents (0 is
    the root, the first place 1).

    chances: float[N, C] of every child given its parent; they do not rise from one child to the next.
    """
    reached = np.array(chances, np.float64)
    flat, children = reached.ravel(), reached.shape[1]
    for begin in range(1, len(reached), width):
        reached[begin : begin + width] *= flat[found.parents[begin - 1 : begin - 1 + width]][:, None]
    # A parent stands before its children, so that of equals it is taken first.
    order = np.argsort(-flat, kind="stable")[: limit.nodes].tolist()
    count = 0
    for place in order:
        if not flat[place] > 0 or flat[place] < limit.price(count + 1):
            break
        count += 1
    places = sorted(order[:count])
    at = {place: number for number, place in enumerate(places, 1)}
    above = found.parents.tolist()
    return places, [at[above[place // children - 1]] if place >= children else 0 for place in places]


def reaches(chances: Chances, width: int) -> list[float]:
    """The chances of all nodes of a tree to be reached, best first, if `width` nodes of a level have children."""
    found, parents = list[float](), [1.0]
    for level in chances:
        nodes = [above * chance for above in parents for chance in level]
        found += nodes
        parents = nlargest(width, nodes)
    return sorted(found, reverse=True)


def best_static(chances: Chances, most: int, spine: bool = False) -> list[tuple[float, list[Node]]]:
    """For 0, 1, ... `most` nodes the expected accepted tokens of the best tree, and its nodes: Sequoia's dynamic
    programme (arXiv 2402.12374) with an acceptance for each depth besides each rank.

    A node of rank r has siblings of all ranks before. spine: only first choices have children.
    """
    sizes = np.arange(most + 1)
    left = sizes[:, None] - sizes  # of m nodes, when one child and what is below it take so many
    none, below = np.zeros(most + 1), np.zeros(most + 1)
    taken: dict[tuple[int, int], npt.NDArray[np.int64]] = {}
    # below[m]: what at most m nodes bring under an accepted node; rests[m]: children of it from a rank on.
    for level in range(len(chances) - 1, -1, -1):
        rests = none
        for rank in range(len(chances[level]) - 1, -1, -1):
            under = none if spine and rank else below
            brings = np.concatenate([[-np.inf], chances[level][rank] * (1 + under[:-1])])
            values = np.where(left >= 0, brings + rests[np.maximum(left, 0)], -np.inf)
            taken[level, rank] = values.argmax(axis=1)
            rests = np.maximum(values.max(axis=1), 0.0)
        below = rests
    return [(float(below[m]), _laid_out(taken, chances, m)) for m in range(most + 1)]


def _laid_out(taken: dict[tuple[int, int], npt.NDArray[np.int64]], chances: Chances, most: int) -> list[Node]:
    """The nodes of the best tree, parents first."""
    found, waiting = list[Node](), [(0, 0, most)]
    for parent, level, nodes in waiting:
        rank = 0
        while nodes and level < len(chances) and rank < len(chances[level]):
            held = int(taken[level, rank][nodes])
            found.append(Node(parent, level, rank))
            if held > 1:
                waiting.append((len(found), level + 1, held - 1))
            nodes, rank = nodes - held, rank + 1
    return found


def static_count(gains: Sequence[float], limit: DraftLimit) -> int:
    """How many nodes are worth their price; gains: expected tokens of the best trees of 0, 1, ... nodes."""
    most = min(limit.nodes, len(gains) - 1)
    prices = list(accumulate(map(limit.price, range(1, most + 1)), initial=0.0))
    return max(range(most + 1), key=lambda n: (gains[n] - prices[n], -n))
