"""Watches the memory of the process while it decodes, and steps down the ladder before the budget is passed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from paceline.memory.budget import resident
from paceline.memory.ladder import Ladder
from paceline.memory.room import Room
from paceline.runtime.loop import Controller

_ROUNDS = 32
"""Between two looks: one costs some 10 us."""


class OwnMemory:
    """Bytes that the process takes, less what a host program came to take meanwhile if only `growth` counts.

    What comes between `begin` and the last `used` after it is the sessions' own, all else the host's.
    """

    def __init__(self, growth: bool) -> None:
        self._growth, self._held, self._others = growth, resident(), 0

    def begin(self) -> None:
        """A session begins to do something: what came since the last look is the host's."""
        if self._growth:
            self._others = max(resident() - self._held, 0)

    def used(self) -> int:
        """Bytes now."""
        self._held = resident() - self._others
        return self._held


class Watch:
    """Keeps a controller below the rung of a ladder; `shed` is told each new one, so that buffers can be given back."""

    def __init__(self, ladder: Ladder, shed: Callable[[Room], None], used: Callable[[], int]) -> None:
        self.ladder, self._shed, self._used = ladder, shed, used
        self._left = 0

    def look(self, controller: Controller, first: bool = False) -> None:
        """Before every round: memory is looked at in some of them, and in the first of an answer."""
        if first or self._left <= 0:
            self._left = _ROUNDS
            if self.ladder.look(self._used()):
                self._shed(self.ladder.ceiling)
            controller.ceiling = self.ladder.ceiling
        self._left -= 1


def give_back() -> None:
    """Return what the C library keeps for later to the system, where it can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
