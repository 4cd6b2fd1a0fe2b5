"""Which tokens of a long text a shorter context keeps: the first few and the recent ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SINKS = 4
"""First tokens that stay: models put attention there that has nowhere else to go (StreamingLLM, 2309.17453)."""


@dataclass(frozen=True, slots=True)
class Window:
    """Kept are `tokens[:sinks]` and `tokens[start:]`. number: how many steps it has moved; 0 keeps everything."""

    sinks: int = 0
    start: int = 0
    number: int = 0

    def of(self, tokens: Sequence[int]) -> list[int]:
        """The kept tokens."""
        return [*tokens[: self.sinks], *tokens[self.start :]]

    def place(self, index: int) -> int:
        """Where the token at `index` of the whole text stands among the kept, or would if it was dropped."""
        return min(index, self.sinks) if index < self.start else index - self.start + self.sinks


def window(length: int, capacity: int, sinks: int = SINKS) -> Window:
    """The window of a text of this length: at most `capacity` tokens.

    It depends on the length alone, so that every way to a text leads to the same window, and moves in steps of half
    the capacity, for each step costs reading the kept tokens again.
    """
    if length <= capacity:
        return Window()
    sinks = min(sinks, capacity // 4)
    step = max((capacity - sinks) // 2, 1)
    number = -(-(length - capacity) // step)
    return Window(sinks, sinks + number * step, number)
