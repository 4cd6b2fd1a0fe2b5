"""When what ran in an answer: the loop's own work, the target's passes, and what drafts beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter as clock
from typing import NamedTuple

from paceline.runtime.contracts import Round

LOOP, TARGET, BESIDE = "loop", "target", "beside"
"""Tracks: the loop's thread without the target's passes, these passes, and the thread beside it."""


class Span(NamedTuple):
    """Seconds of `time.perf_counter`, from begin to end; an instant has both alike. about: counts that belong to it."""

    track: str
    name: str
    begin: float
    end: float
    about: Mapping[str, int]


@dataclass(slots=True)
class Timeline:
    """Spans of one answer in the order in which they ended; two threads may add to it."""

    spans: list[Span] = field(default_factory=list)

    def add(self, track: str, name: str, begin: float, end: float, **about: int) -> None:
        """One more span."""
        self.spans.append(Span(track, name, begin, end, about))

    def mark(self, track: str, name: str, **about: int) -> None:
        """Something that happens now."""
        now = clock()
        self.add(track, name, now, now, **about)

    def round(self, done: Round) -> None:
        """The parts of a round."""
        begun, proposed, passed, judged, kept, ended = done.times
        tree, path = done.outcome.tree, done.outcome.verdict.path
        if done.wait:
            self.add(LOOP, "wait", begun - done.wait, begun)
        self.add(LOOP, "draft", begun, proposed, tokens=len(tree) - 1)
        self.add(TARGET, "verify", proposed, passed, rows=len(tree))
        self.add(LOOP, "judge", passed, judged, accepted=len(path) - 1)
        self.add(TARGET, "keep", judged, kept, rows=len(path))
        self.add(LOOP, "learn", kept, ended)
