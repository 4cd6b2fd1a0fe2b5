"""What passes of a part cost here, as measured when a device first runs it."""

from __future__ import annotations

from functools import partial

from paceline.runtime.control.costs import Points, Probed, known_points, measure, warm
from paceline.runtime.control.estimates import CostCurve
from paceline.runtime.drafters.prices import level_seconds
from paceline.runtime.model.head import Head, TreeProbe
from paceline.runtime.model.key import Key

_MEASURING_TREE = 0.05
"""Seconds that finding out what a tree of a head costs may take."""


def curve_of(key: Key, model: Probed, widest: int, seconds: float) -> CostCurve:
    """The costs of passes of up to `widest` rows; finding out may take so many seconds."""

    def measured() -> Points:
        if isinstance(model, Head):
            model.open()  # which takes longer than many drafts
        elif key.device != "cpu":
            warm(model, widest)
        return measure(model, widest, seconds)

    return CostCurve(known_points(key.text(), widest, measured), widest)


def price_trees(key: Key, head: Head, curve: CostCurve) -> None:
    """How many levels of a chain each of a head's trees takes as long as. curve: the costs of its chains."""
    one, deepest = curve.seconds(1, 0), curve.seconds(curve.widest, 0)
    level = level_seconds(one, deepest, curve.widest)
    for shape in head.trees:
        probed = partial(_opened_first, head, TreeProbe(head, shape))
        points = known_points(f"{key.text()} tree {shape.depth}x{shape.width}", 1, probed)
        extra = points.seconds[0][1] - one
        head.worth[shape] = max(1.0 + extra / level, 1.0) if level > 0 else float(shape.depth)


def _opened_first(head: Head, probed: TreeProbe) -> Points:
    """What a tree takes; opening its graph takes longer."""
    head.open()
    return measure(probed, 1, _MEASURING_TREE)
