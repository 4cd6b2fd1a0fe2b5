"""Which draft passes are worth their time beside the target's pass."""

from __future__ import annotations

from collections.abc import Sequence

_LEAST = 0.15
"""A pass has to save this share of its time, in the mean: cores share their memory, and what runs beside the target
slows it down; anywhere it takes energy."""
_ROW = 0.35
"""What one more row adds to a pass of one, where nothing is known of it."""
_OLD = 0.8
"""Of what is known of passes so much stays with the next one."""


class Pace:
    """What passes beside the target take, by their rows, as they are run; seconds."""

    def __init__(self) -> None:
        self._took: dict[int, float] = {}

    def learn(self, rows: int, seconds: float) -> None:
        """A pass over so many rows has run."""
        self._took[rows] = seconds + _OLD * (self._took.get(rows, seconds) - seconds)

    def seconds(self, rows: int) -> float:
        """Of a pass over so many rows, by the nearest that was run; 0 where none was."""
        if not self._took:
            return 0.0
        near = min(self._took, key=lambda known: abs(known - rows))
        return self._took[near] * (1 + _ROW * (rows - 1)) / (1 + _ROW * (near - 1))

    def rows(self, chances: Sequence[float], left: float) -> int:
        """Over how many of the likeliest nodes a pass saves most of its time; 0 where none saves enough.

        chances: that the text goes through a node, the likeliest first. left: seconds until the loop will wait for it.
        """
        if not self._took:
            return len(chances)
        best, most, used, alone = _LEAST, 0, 0.0, self.seconds(1)
        for count, chance in enumerate(chances, 1):
            used, taken = min(used + chance, 1.0), self.seconds(count)
            saved = (used * alone - max(taken - left, 0.0)) / taken
            if saved > best:
                best, most = saved, count
        return most
