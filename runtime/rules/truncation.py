"""Finding the few largest of a row without sorting it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.runtime.ops.vocabulary import native


def kth_largest(row: npt.NDArray[Any], k: int) -> Any:
    """The k-th largest value of a row without NaN, 1 <= k <= len(row); the native library gives the same.

    Only values at or above the k-th largest maximum of strided blocks can be among the k largest: one pass
    finds that bound, and what is left to partition is hardly more than k values.
    """
    n = len(row)
    blocks = n // _STRIDE
    if k <= _FEW and row.dtype == np.float32 and row.flags.c_contiguous and (library := native()) is not None:
        return library.kth_largest(row, k)
    if blocks >= 4 * k:
        tops = row[: blocks * _STRIDE].reshape(_STRIDE, blocks).max(axis=0)
        row = row[row >= np.partition(tops, blocks - k)[blocks - k]]
        n = len(row)
    return np.partition(row, n - k)[n - k]


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


_FEW = 256  # where the native library was measured to be faster
_SORTED = 1024
_STRIDE = 32
_COARSE = 46  # leaves the exponent and six bits of the fraction: 64 bins an octave
