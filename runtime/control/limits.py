"""A draft limit that nobody corrects."""

from __future__ import annotations

from paceline.memory.room import Room
from paceline.runtime.contracts import DraftLimit, Round
from paceline.runtime.control.trace import Trace
from paceline.runtime.request import Request


class FixedLimit:
    """The same limit every round, cut to the room that is left."""

    def __init__(self, nodes: int, depth: int, step_price: float = 0.0, node_price: float = 0.0) -> None:
        self._limit = DraftLimit(nodes, depth, step_price, node_price)
        self.ceiling: Room | None = None

    def limit(self, room: int) -> DraftLimit:
        """At most `room` levels, below the ceiling."""
        return self._limit.within(room, self.ceiling)

    def begin(self, request: Request, reused: int) -> None:
        """Nothing."""

    def learn(self, done: Round) -> None:
        """Nothing."""

    def moved(self, length: int) -> None:
        """Nothing."""

    def finish(self) -> Trace | None:
        """Nothing was chosen."""
        return None
