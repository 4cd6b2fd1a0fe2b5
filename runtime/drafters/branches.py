"""Which continuations a draft model looks at beside the target's pass: ways to spend the time, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from paceline.runtime.drafters.grid import ROOT, Grid

Branches = Literal["exit", "weight", "fan", "window"]
"""exit: what the target says early, at all that it looks at (Mirror-SD, 2510.13161). weight: what the draft model
thinks likely there. fan: as many corrections of each place, to the same depth (SSD, 2603.03251). window: that all is
accepted, alone, and nothing is drafted where it was not (PEARL, 2408.11850)."""

FIXED = frozenset[Branches]({"fan", "window"})
"""Those that look at what they look at whatever its chances are, as long as the target runs."""
FAN = 3
"""Corrections of each place that `fan` looks at."""


def _by_weight(grid: Grid, node: int) -> float:
    """The chance that the text goes through it. Behind what the target looks at one continuation alone is of use."""
    parent = grid.parents[node]
    if parent not in grid.window and grid.children[parent][0] != node:
        return 0.0
    return _through(grid, node)


def _through(grid: Grid, node: int) -> float:
    return grid.weights[node]


def _in_fan(grid: Grid, node: int) -> float:
    """First what the target looks at, then all corrections level by level."""
    if node in grid.window:
        return 2.0
    depth = 1
    while grid.parents[node] not in grid.window:
        if grid.children[grid.parents[node]][0] != node:
            return 0.0
        node, depth = grid.parents[node], depth + 1
    others = [child for child in grid.children[grid.parents[node]] if child not in grid.window]
    return 1 / depth if node in others[:FAN] else 0.0


def _along(grid: Grid, node: int) -> float:
    """The likeliest way down."""
    while node != ROOT:
        if grid.children[grid.parents[node]][0] != node:
            return 0.0
        node = grid.parents[node]
    return 1.0


WORTH: Mapping[Branches, Callable[[Grid, int], float]] = {
    "exit": _by_weight,
    "weight": _by_weight,
    "fan": _in_fan,
    "window": _along,
}
"""What a node is worth to be fed, 0 for nothing, where a chain is drafted."""
WORTH_IN_TREES: Mapping[Branches, Callable[[Grid, int], float]] = {
    **WORTH,
    "exit": _through,
    "weight": _through,
}
"""The same where every continuation may be proposed."""
