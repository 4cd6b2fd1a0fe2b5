"""Reads the growing seconds of a generation, a round or a few rounds at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_PARTS = ("draft", "verify", "judge")
_GUESS = 2e-5


class Spent(NamedTuple):
    """Seconds by part."""

    draft: float
    verify: float
    judge: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.draft + self.verify + self.judge


class Meter:
    """What `draft`, `verify` and `judge` (docs/statistics.md) grew by since the last look."""

    def __init__(self) -> None:
        self.follow(dict.fromkeys(_PARTS, 0.0))
        self.judge_a_token = _GUESS
        """Mean seconds that judging a token takes."""

    def follow(self, seconds: Mapping[str, float]) -> None:
        """Read these from now on."""
        self._seconds = seconds
        self._last = Spent(*[seconds[part] for part in _PARTS])

    def read(self, tokens: int) -> Spent:
        """Since the last look, in which so many tokens came out."""
        seconds, last = self._seconds, self._last
        now = Spent(seconds["draft"], seconds["verify"], seconds["judge"])
        self._last = now
        spent = Spent(now.draft - last.draft, now.verify - last.verify, now.judge - last.judge)
        if tokens > 0 and spent.judge > 0:
            share = min(0.05 * tokens, 0.4)
            self.judge_a_token += share * (
                min(spent.judge / tokens, 10 * self.judge_a_token) - self.judge_a_token
            )
        return spent
