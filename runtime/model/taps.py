"""Hidden states of a target's committed rows, for drafters that are fed with them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from paceline.runtime.contracts import Array


class TapBuffer:
    """float32[capacity, hidden] a tap, one row a committed token: tokens can be read again, these only kept.

    What stands in it is a stretch of rows, `held`: those before it came with a cache that was restored, or before
    anybody asked for taps, and are not known. Memory becomes resident as rows are written. What was dropped it gives
    again once it is asked for, from then on.
    """

    def __init__(self, taps: Iterable[str], hidden: int, capacity: int) -> None:
        self._shape = capacity, hidden
        self._rows: dict[str, npt.NDArray[np.float32]] = {}
        self.held = range(0)
        self.epoch = 0
        """How often everything was forgotten: rows of the same tokens may differ from then on."""
        self.widen(taps)

    @property
    def taps(self) -> frozenset[str]:
        """Names of those that are kept."""
        return frozenset(self._rows)

    @property
    def bytes(self) -> int:
        """Bytes that are reserved."""
        return sum(rows.nbytes for rows in self._rows.values())

    def widen(self, taps: Iterable[str]) -> None:
        """Keep these too; of rows that are there already they are not known, so where one is new none is held."""
        if new := sorted(set(taps).difference(self._rows)):
            self._rows |= {tap: np.zeros(self._shape, np.float32) for tap in new}
            self.cut(0)

    def narrow(self, taps: Collection[str]) -> None:
        """Keep no others than these, and give their memory back; with the last of them every row is forgotten."""
        self._rows = {tap: rows for tap, rows in self._rows.items() if tap in taps}
        if not self._rows:
            self.cut(0)

    def write(self, at: int, new: Mapping[str, Array], rows: Sequence[int] | slice) -> None:
        """Keep the chosen rows of a pass, `[T, hidden]` by tap, from row `at` on; what stood there goes."""
        if not self._rows:
            return
        end = at
        for tap, kept in self._rows.items():
            chosen = new[tap][rows] if isinstance(rows, slice) else new[tap][list(rows)]
            end = at + len(chosen)
            kept[at:end] = chosen
        first = self.held.start if self.held.start <= at <= self.held.stop and self.held else at
        self.held = range(first, end)

    def cut(self, length: int) -> None:
        """Forget all rows from `length` on."""
        self.epoch += length == 0
        self.held = range(min(self.held.start, length), min(self.held.stop, length))

    def rows(self, tap: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """float32[stop - start, hidden], a view that later rounds may overwrite.

        Raises ValueError for what is not held.
        """
        if start < stop and not (self.held.start <= start and stop <= self.held.stop):
            raise ValueError(
                f"rows {start} to {stop} of {tap} are not held: {self.held.start} to {self.held.stop} are"
            )
        return self._rows[tap][start:stop]
