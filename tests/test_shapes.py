"""Which nodes of a tree are chosen: held against every tree that there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product as pairs

import numpy as np
import pytest

from paceline.runtime.contracts import DraftLimit
from paceline.runtime.drafters.ranks import Ranks
from paceline.runtime.drafters.shapes import (
    Node,
    best_branches,
    best_product,
    best_static,
    reaches,
    static_count,
)
from paceline.runtime.model.head import Branches

FALLING = [[0.6, 0.2, 0.1], [0.5, 0.3, 0.05], [0.7, 0.1, 0.1]]
UNEVEN = [[0.2, 0.6, 0.1], [0.1, 0.1, 0.7], [0.3, 0.5, 0.2]]
"""Of which a better rank stands behind a worse one, that must come with it."""


def trees(chances: Sequence[Sequence[float]], nodes: int, spine: bool, level: int = 0) -> Iterator[float]:
    """What every tree under an accepted node is worth that has just so many nodes, children in the order of ranks."""
    if nodes == 0:
        yield 0.0
        return
    if level == len(chances):
        return
    for width in range(1, min(nodes, len(chances[level])) + 1):
        for parts in pairs(range(nodes - width + 1), repeat=width):
            if sum(parts) == nodes - width and not (spine and any(parts[1:])):
                worths = [list(trees(chances, part, spine, level + 1)) for part in parts]
                for below in pairs(*worths):
                    yield sum(chances[level][rank] * (1 + worth) for rank, worth in enumerate(below))


def worth(nodes: Sequence[Node], chances: Sequence[Sequence[float]]) -> float:
    reached = [1.0]
    for node in nodes:
        reached.append(reached[node.parent] * chances[node.level][node.rank])
    return sum(reached[1:])


@pytest.mark.parametrize("spine", [False, True])
@pytest.mark.parametrize("chances", [FALLING, UNEVEN], ids=["falling", "uneven"])
def test_static_trees_are_the_best_of_all_trees(chances: list[list[float]], spine: bool) -> None:
    for count, (gain, nodes) in enumerate(best_static(chances, 6, spine)):
        every = [value for size in range(count + 1) for value in trees(chances, size, spine)]
        assert gain == pytest.approx(max(every))
        assert len(nodes) <= count
        assert worth(nodes, chances) == pytest.approx(gain)
        for number, node in enumerate(nodes, 1):
            assert node.parent < number
            assert node.level == (nodes[node.parent - 1].level + 1 if node.parent else 0)
            earlier = [other.rank for other in nodes[: number - 1] if other.parent == node.parent]
            assert earlier == list(range(node.rank))


def test_where_ranks_fall_the_best_paths_are_the_best_static_tree() -> None:
    for count, (gain, _) in enumerate(best_static(FALLING, 12)):
        nodes = best_product(FALLING, DraftLimit(count, 9))
        assert worth(nodes, FALLING) == pytest.approx(gain)
        assert sum(reaches(FALLING, 99)[:count]) == pytest.approx(gain)


def test_uneven_ranks_want_a_worse_sibling_first() -> None:
    """Best first is late to see what stands behind it."""
    assert best_static(UNEVEN, 5)[5][0] > worth(best_product(UNEVEN, DraftLimit(5, 9)), UNEVEN) + 0.1


def test_prices_end_trees() -> None:
    limit = DraftLimit(12, 9, 0.0, 0.19)
    nodes = best_product(FALLING, limit)
    gains = [gain for gain, _ in best_static(FALLING, 12)]
    assert len(nodes) == sum(chance >= 0.19 for chance in reaches(FALLING, 99)) == static_count(gains, limit)
    assert static_count(gains, DraftLimit(12, 9, 0.0, 0.9)) == 0
    assert best_product(FALLING, DraftLimit(12, 9, 0.0, 0.9)) == []


def test_only_so_many_nodes_of_a_level_have_children() -> None:
    assert len(reaches(FALLING, 1)) == 9
    assert len(reaches(FALLING, 2)) == 3 + 6 + 6
    assert reaches(FALLING, 1)[:3] == pytest.approx([0.6, 0.3, 0.21])
    assert sum(reaches(FALLING, 2)) > sum(reaches(FALLING, 1))


def drafted(seed: int, depth: int = 3, width: int = 2, children: int = 4) -> tuple[Branches, np.ndarray]:
    """A tree of random chances, grown as a graph grows it."""
    rng = np.random.default_rng(seed)
    later = (depth - 1) * width
    chances = -np.sort(-rng.dirichlet(np.ones(children + 2), 1 + later)[:, :children], axis=1)
    tokens = np.arange((1 + later) * children).reshape(-1, children)
    sums, first, parents = chances[:1], 0, []
    for level in range(depth - 1):
        best = np.argsort(-sums.ravel(), kind="stable")[:width]
        parents += [first + place for place in best]
        first = children * (1 + level * width)
        rows = chances[1 + level * width : 1 + (level + 1) * width]
        sums = sums.ravel()[best][:, None] * rows
    return Branches(
        tokens, np.log(chances).astype(np.float32), np.array(parents), np.zeros((1, 9), np.float32)
    ), chances


@pytest.mark.parametrize("seed", range(5))
def test_the_best_nodes_of_a_drafted_tree_are_found_with_their_parents(seed: int) -> None:
    found, chances = drafted(seed)
    above = {place: int(found.parents[place // 4 - 1]) if place >= 4 else -1 for place in range(chances.size)}

    def reached(place: int) -> float:
        own = float(chances.ravel()[place])
        return own * (reached(above[place]) if above[place] >= 0 else 1.0)

    order = sorted(range(chances.size), key=lambda place: -reached(place))
    for count in (1, 4, 9, 20):
        places, parents = best_branches(found, chances.astype(np.float32), 2, DraftLimit(count, 9))
        assert places == sorted(order[:count])
        for place, parent in zip(places, parents, strict=True):
            assert (places[parent - 1] if parent else -1) == above[place]
    least = reached(order[6])
    priced = best_branches(found, chances.astype(np.float32), 2, DraftLimit(20, 9, 0.0, least * 1.001))[0]
    assert priced == sorted(order[:6])


def test_what_nobody_measured_falls_by_half_of_what_is_left() -> None:
    ranks = Ranks([], [0.6, 0.5])
    assert ranks.at(1)[:3] == pytest.approx([0.6, 0.2, 0.1])
    assert ranks.at(7)[0] == pytest.approx(0.5)
    assert Ranks([[0.5, 0.3, 0.4]], [0.9]).at(3)[:3] == pytest.approx([0.5, 0.3, 0.3])
