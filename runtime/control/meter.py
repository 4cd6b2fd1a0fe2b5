"""Adds up the seconds of rounds, and how long judging a token takes."""

from __future__ import annotations

from typing import NamedTuple

from paceline.runtime.contracts import Round

_GUESS = 2e-5


class Spent(NamedTuple):
    """Seconds of some rounds: drafting, verifying, and all of them."""

    draft: float
    verify: float
    total: float


class Meter:
    """What rounds took since the last look."""

    def __init__(self) -> None:
        self.judge_a_token = _GUESS
        """Mean seconds that judging a token takes."""
        self.clear()

    def clear(self) -> None:
        """Forget what was not looked at."""
        self._draft = self._verify = self._judge = self._wait = 0.0

    def add(self, done: Round) -> None:
        """One more round."""
        self._draft += done.draft
        self._verify += done.verify
        self._judge += done.judge
        self._wait += done.wait

    def read(self, tokens: int) -> Spent:
        """Since the last look, in which so many tokens came out."""
        judge = self._judge
        spent = Spent(self._draft, self._verify, self._draft + self._verify + judge + self._wait)
        if tokens > 0 and judge > 0:
            share = min(0.05 * tokens, 0.4)
            self.judge_a_token += share * (min(judge / tokens, 10 * self.judge_a_token) - self.judge_a_token)
        self.clear()
        return spent
