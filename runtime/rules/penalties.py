"""Which tokens a history holds, how often and in what order: what penalties on repetition read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paceline.runtime.prefix import common_prefix


class Tally:
    """Counts of one history at a time; a new history costs only what differs from the last one.

    ngram: the length of the runs that `repeats` looks for, 0 for none.
    """

    __slots__ = ("_all", "_grams", "_output", "_prompt", "_tokens")

    def __init__(self, prompt_length: int, ngram: int = 0) -> None:
        self._prompt = prompt_length
        self._grams = _Grams(ngram - 1) if ngram else None
        self._tokens: list[int] = []
        self._all = _Counts()
        self._output = _Counts()

    def follow(self, history: Sequence[int]) -> None:
        """Count this history instead of the last one."""
        new = list(history)
        keep = common_prefix(self._tokens, new)
        while len(self._tokens) > keep:
            token = self._tokens.pop()
            self._all.pop(token)
            if len(self._tokens) >= self._prompt:
                self._output.pop(token)
            if self._grams is not None:
                self._grams.pop(self._tokens)
        for token in new[keep:]:
            self._all.push(token)
            if len(self._tokens) >= self._prompt:
                self._output.push(token)
            if self._grams is not None:
                self._grams.push(self._tokens, token)
            self._tokens.append(token)

    def seen(self) -> npt.NDArray[np.int64]:
        """int64[n]: the distinct tokens of prompt and output; a view that the next history overwrites."""
        return self._all.ids[: self._all.used]

    def output(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """int64[n], float64[n]: the distinct tokens of the output and how often each stands there; views."""
        return self._output.ids[: self._output.used], self._output.times[: self._output.used]

    def repeats(self) -> Sequence[int]:
        """Tokens that would end a run of `ngram` tokens which prompt or output hold already."""
        return () if self._grams is None else self._grams.after(self._tokens)


class _Grams:
    """What followed each run of `size` tokens, in the order in which it came."""

    __slots__ = ("_after", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._after: dict[tuple[int, ...], list[int]] = {}

    def after(self, tokens: list[int]) -> Sequence[int]:
        return self._after.get(self._last(tokens), ())

    def push(self, tokens: list[int], token: int) -> None:
        if len(tokens) >= self._size:
            self._after.setdefault(self._last(tokens), []).append(token)

    def pop(self, tokens: list[int]) -> None:
        if len(tokens) >= self._size:
            self._after[self._last(tokens)].pop()

    def _last(self, tokens: list[int]) -> tuple[int, ...]:
        return tuple(tokens[max(len(tokens) - self._size, 0) :])


class _Counts:
    """Distinct tokens in the order in which they came; they leave in reverse, so the last place empties."""

    __slots__ = ("_place", "ids", "times", "used")

    def __init__(self) -> None:
        self.ids = np.empty(256, np.int64)
        self.times = np.empty(256)
        self.used = 0
        self._place: dict[int, int] = {}

    def push(self, token: int) -> None:
        place = self._place.get(token)
        if place is not None:
            self.times[place] += 1
            return
        if self.used == len(self.ids):
            self.ids = np.resize(self.ids, 2 * self.used)
            self.times = np.resize(self.times, 2 * self.used)
        self._place[token] = self.used
        self.ids[self.used] = token
        self.times[self.used] = 1
        self.used += 1

    def pop(self, token: int) -> None:
        place = self._place[token]
        self.times[place] -= 1
        if self.times[place] == 0:
            del self._place[token]
            self.used -= 1
