"""Draft limits below a ceiling and within the room that is left."""

from __future__ import annotations

from dataclasses import replace

from paceline.memory.ladder import Ceiling
from paceline.runtime.contracts import DraftLimit, Round
from paceline.runtime.control.trace import Trace
from paceline.runtime.request import Request


def cut(limit: DraftLimit, room: int, ceiling: Ceiling | None) -> DraftLimit:
    """The limit below the ceiling, for at most `room` levels."""
    nodes, depth = limit.nodes, min(limit.depth, max(room, 0))
    if ceiling is not None:
        nodes, depth = min(nodes, ceiling.nodes), min(depth, ceiling.depth)
    nodes = nodes if depth > 0 else 0
    if nodes == limit.nodes and depth == limit.depth:
        return limit
    return replace(limit, nodes=nodes, depth=depth)


class FixedLimit:
    """The same limit every round, cut to the room that is left."""

    def __init__(self, nodes: int, depth: int, step_price: float = 0.0, node_price: float = 0.0) -> None:
        self._limit = DraftLimit(nodes, depth, step_price, node_price)
        self.ceiling: Ceiling | None = None

    def limit(self, room: int) -> DraftLimit:
        """At most `room` levels, below the ceiling."""
        return cut(self._limit, room, self.ceiling)

    def begin(self, request: Request, reused: int) -> None:
        """Nothing."""

    def learn(self, done: Round) -> None:
        """Nothing."""

    def moved(self, length: int) -> None:
        """Nothing."""

    def finish(self) -> Trace | None:
        """Nothing was chosen."""
        return None
