"""What controllers learn, as values: kept with a loaded bundle, so that its next session begins with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock

from paceline.runtime.control.estimates import Arm, Drift, Learnt
from paceline.runtime.control.prospects import Prospects
from paceline.runtime.control.purse import Purse


@dataclass(frozen=True, slots=True)
class Lessons:
    """Of one answer and all before it. judge_a_token: seconds. expected: tokens of an answer. seconds: the purse's."""

    arms: Mapping[str, Learnt]
    drift: Drift
    judge_a_token: float
    expected: float
    seconds: float

    @classmethod
    def of(cls, arms: Sequence[Arm], known: Prospects, purse: Purse, expected: float) -> Lessons:
        """What these know now."""
        learnt = {arm.name: arm.learnt for arm in arms}
        return cls(learnt, known.curve.now, known.judge_a_token, expected, purse.seconds)

    def teach(self, arms: Sequence[Arm], known: Prospects, purse: Purse) -> float:
        """Let these know it, but for what they have read of their text; returns the expected tokens of an answer."""
        for arm in arms:
            if arm.name in self.arms:
                arm.learnt = self.arms[arm.name]
        known.curve.now, known.judge_a_token, purse.seconds = self.drift, self.judge_a_token, self.seconds
        return self.expected


class Book:
    """The newest lessons; sessions in several threads may share it."""

    def __init__(self) -> None:
        self._newest: Lessons | None = None
        self._lock = Lock()

    def newest(self) -> Lessons | None:
        """None where no answer has ended yet."""
        with self._lock:
            return self._newest

    def keep(self, lessons: Lessons) -> None:
        """An answer has ended. Of two that end at a time the later one's are kept: each counts what it began with.

        Arms that its session does not have stay as another one learnt them.
        """
        with self._lock:
            known = {} if self._newest is None else self._newest.arms
            self._newest = replace(lessons, arms={**known, **lessons.arms})
