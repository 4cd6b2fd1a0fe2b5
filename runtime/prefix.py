"""How far two texts are the same."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(old: list[int], new: Sequence[int]) -> int:
    """Length of the longest common prefix; whole slices are compared, so a text that only grew costs little."""
    low, high = 0, min(len(old), len(new))
    if old[:high] == list(new[:high]):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if old[low:middle] == list(new[low:middle]):
            low = middle
        else:
            high = middle
    return low
