"""What a memory budget leaves to drafting, and the rungs to step down when memory runs short all the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from paceline.memory.room import Room

_SHORT_CACHE = 256
_CALM, _MOST_CALM = 4, 256
"""Looks in a row that must find memory to spare before a rung is climbed; twice as many where that was in vain."""


def rungs(top: Room, window: bool) -> Iterator[Room]:
    """From the plan down: fewer nodes, shorter drafts, a short draft cache, no draft model, no drafting.

    window: whether the draft cache is longer than the short one.
    """
    now = top
    yield now
    while now.nodes > 4:
        now = replace(now, nodes=now.nodes // 2)
        yield now
    while now.depth > 2:
        now = replace(now, depth=now.depth // 2)
        yield now
    if now.models and window:
        now = replace(now, draft_rows=_SHORT_CACHE)
        yield now
    if now.models and now.tables:
        now = replace(now, models=False)
        yield now
    yield Room(nodes=0, depth=0, models=False, tables=False, draft_rows=now.draft_rows)


class Ladder:
    """Steps down a rung at each look above `limit`, and up after several looks below `low`, both in bytes."""

    def __init__(self, top: Room, window: bool, limit: int, low: int) -> None:
        self._rungs = tuple(rungs(top, window))
        self._limit, self._low = limit, low
        self._at, self._calm, self._needed, self._climbed = 0, 0, _CALM, False

    @property
    def ceiling(self) -> Room:
        """The rung that it stands on."""
        return self._rungs[self._at]

    def look(self, used: int) -> bool:
        """Take note of the bytes in use; whether the rung changed."""
        before = self._at
        if used > self._limit:
            self._at, self._calm = min(self._at + 1, len(self._rungs) - 1), 0
            if self._climbed:
                self._needed, self._climbed = min(2 * self._needed, _MOST_CALM), False
        elif used < self._low:
            self._calm += 1
            if self._calm >= self._needed and self._at:
                self._at, self._calm, self._climbed = self._at - 1, 0, True
        else:
            self._calm = 0
        return self._at != before
