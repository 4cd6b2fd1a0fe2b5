"""Finding the few largest of a row without sorting it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.runtime.ops.vocabulary import kth_largest


def largest(row: npt.NDArray[Any], k: int) -> npt.NDArray[np.intp]:
    """Places of the k largest values, largest first; among equal values the earlier place first."""
    if k == 1:
        return np.array([row.argmax()])
    places = np.flatnonzero(row >= kth_largest(row, k))
    return places[np.argsort(-row[places], kind="stable")[:k]]


def nucleus(weights: npt.NDArray[np.float64], goal: float) -> npt.NDArray[np.intp]:
    """Ascending places of the fewest largest of these positive weights whose sum reaches the goal, or of all.

    The weight that reaches it belongs to them; among equal weights the earlier place goes first. The
    leading bits of a positive float sort like the float, so they tell which few weights need sorting.
    """
    above, kept, band = 0.0, np.zeros(len(weights), np.bool_), np.arange(len(weights))
    if len(weights) > _SORTED:
        bins = weights.view(np.int64) >> _COARSE
        bins -= bins.min()
        downwards = np.bincount(bins, weights)[::-1].cumsum()
        at = min(int(downwards.searchsorted(goal)), len(downwards) - 1)
        above = float(downwards[at - 1]) if at else 0.0
        kept = bins > len(downwards) - 1 - at
        band = np.flatnonzero(bins == len(downwards) - 1 - at)
    order = np.argsort(-weights[band], kind="stable")
    enough = int((above + weights[band[order]].cumsum()).searchsorted(goal)) + 1
    kept[band[order[:enough]]] = True
    return np.flatnonzero(kept)


_SORTED = 1024
_COARSE = 46  # leaves the exponent and six bits of the fraction: 64 bins an octave
