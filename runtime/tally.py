"""Which tokens a history holds and how often: what repetition, frequency and presence penalties read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class Tally:
    """Counts of one history at a time; a new history costs only what differs from the last one."""

    __slots__ = ("_counts", "_output", "_prompt", "_tokens")

    def __init__(self, prompt_length: int) -> None:
        self._prompt = prompt_length
        self._tokens: list[int] = []
        self._counts: dict[int, int] = {}
        self._output: dict[int, int] = {}

    def follow(self, history: Sequence[int]) -> None:
        """Count this history instead of the last one."""
        new = list(history)
        keep = _shared(self._tokens, new)
        while len(self._tokens) > keep:
            token = self._tokens.pop()
            _drop(self._counts, token)
            if len(self._tokens) >= self._prompt:
                _drop(self._output, token)
        for place in range(keep, len(new)):
            token = int(new[place])
            self._counts[token] = self._counts.get(token, 0) + 1
            if place >= self._prompt:
                self._output[token] = self._output.get(token, 0) + 1
            self._tokens.append(token)

    def seen(self) -> npt.NDArray[np.int64]:
        """int64[n]: the distinct tokens of prompt and output."""
        return np.fromiter(self._counts, np.int64, len(self._counts))

    def output(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """int64[n], float64[n]: the distinct tokens of the output and how often each stands there."""
        n = len(self._output)
        return np.fromiter(self._output, np.int64, n), np.fromiter(self._output.values(), np.float64, n)


def _drop(counts: dict[int, int], token: int) -> None:
    if counts[token] == 1:
        del counts[token]
    else:
        counts[token] -= 1


def _shared(old: list[int], new: list[int]) -> int:
    """Length of the longest common prefix; whole slices are compared, so equal histories cost little."""
    low, high = 0, min(len(old), len(new))
    if old[:high] == new[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle
    return low
