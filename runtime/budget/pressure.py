"""Watches the memory of the process while it decodes, and steps down the ladder before the budget is passed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Protocol

from paceline.memory.budget import resident
from paceline.memory.ladder import Ceiling, Ladder
from paceline.runtime.contracts import DraftLimit, Outcome

_ROUNDS = 32
"""Between two looks: one costs some 10 us."""


class Bounded(Protocol):
    """A controller that keeps below a ceiling."""

    ceiling: Ceiling | None

    def limit(self, room: int) -> DraftLimit:
        """The limit of the next round."""

    def learn(self, outcome: Outcome) -> None:
        """Follows every round."""


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


class Watched:
    """A controller under a ladder; `shed` is told each new ceiling, so that buffers can be given back."""

    def __init__(
        self,
        inner: Bounded,
        ladder: Ladder,
        shed: Callable[[Ceiling], None],
        used: Callable[[], int],
    ) -> None:
        self._inner, self._ladder, self._shed, self._used = inner, ladder, shed, used
        self._left = 0

    def limit(self, room: int) -> DraftLimit:
        """The inner controller's, below the ladder's rung."""
        if self._left <= 0:
            self._left = _ROUNDS
            if self._ladder.look(self._used()):
                self._shed(self._ladder.ceiling)
            self._inner.ceiling = self._ladder.ceiling
        self._left -= 1
        return self._inner.limit(room)

    def learn(self, outcome: Outcome) -> None:
        """Passed on."""
        self._inner.learn(outcome)


def give_back() -> None:
    """Return what the C library keeps for later to the system, where it can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
