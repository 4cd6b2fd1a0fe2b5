"""What the arms of a controller promise at the moment, and what it would cost to try them."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.runtime.contracts import DraftLimit
from paceline.runtime.control.estimates import Arm, CostCurve

_LUCKLESS = 2
"""Rounds without an accepted token after which a trial has lost enough."""
TRIAL = 5
"""Rounds of a first trial."""
_LEAST = 0.005
"""Price of a node that costs nothing: chances below it are noise."""

_PAYS = 1.02
"""A member of a fusion must be so much faster than plain decoding: what is less may be the clock's noise."""
_JUDGING = 2e-5
"""Seconds of judging a token, before any was."""


class Prospects:
    """past: tokens of the text. judge_a_token: mean seconds of judging one. An arm of depth 0 is plain decoding."""

    def __init__(self, curve: CostCurve, nodes: int) -> None:
        self.curve, self.nodes, self.past = curve, nodes, 0
        self.judge_a_token = _JUDGING

    def plain_seconds(self) -> float:
        """Seconds a token of plain decoding."""
        return self.curve.seconds(0, self.past) + self.judge_a_token

    def rate(self, arm: Arm) -> float:
        """Tokens a second; of an arm that never ran what it could be at best."""
        if arm.plain:
            return 1 / self.plain_seconds()
        if not arm.weight:
            return self._hope(arm)
        verify = arm.verify(self.curve, self.past)
        return arm.tokens / (arm.draft + verify + arm.tokens * self.judge_a_token)

    def _hope(self, arm: Arm) -> float:
        """Tokens a second if it drafts to the best depth and is accepted as can be hoped."""
        best, tokens, level = 0.0, 1.0, 1.0
        for depth in range(1, max(min(arm.depth, self.nodes), 1) + 1):
            level *= arm.hope
            tokens += level
            cost = arm.flat + arm.step * depth + self.curve.seconds(1 + depth, self.past)
            best = max(best, tokens / (cost + tokens * self.judge_a_token))
        return best

    def luck(self, arm: Arm) -> float:
        """Tokens a second that an arm may reach, the less is known of it the more."""
        if arm.plain or not arm.weight:
            return self.rate(arm)
        return float(self.rate(arm) * (1 + 1 / (arm.tokens * arm.weight**0.5)))

    def joins(self, arm: Arm, arms: Sequence[Arm]) -> bool:
        """A fusion is tried where its members were, and one of them pays."""
        members = [a for a in arms if a.name in arm.members]
        if not members or arm.weight:
            return True
        pays = _PAYS / self.plain_seconds()
        return all(a.weight for a in members) and any(self.rate(a) > pays for a in members)

    def owed(self, arm: Arm) -> float:
        """Seconds that an arm needs to read what it has not seen."""
        return max(self.past - arm.seen, 0) * arm.catch_up

    def saved(self, arm: Arm, tokens: float) -> float:
        """Seconds that so many tokens take less than plain decoding would."""
        return tokens * max(self.plain_seconds() - 1 / self.rate(arm), 0.0)

    def risk(self, arm: Arm, home: Arm) -> float:
        """Seconds that a trial may lose against the home arm before it is given up."""
        usual = 1 / self.rate(home)
        if arm.plain:
            return 2 * _LUCKLESS * max(self.plain_seconds() - usual, 0.0)
        draft = arm.draft if arm.weight else arm.flat + 2 * arm.step
        verify = arm.verify(self.curve, self.past) if arm.weight else self.curve.seconds(3, self.past)
        if arm.members and not arm.weight:
            # A member pays, so little more than the other's cost can be lost.
            return self.owed(arm) + TRIAL * arm.flat
        return self.owed(arm) + _LUCKLESS * max(draft + verify + self.judge_a_token - usual, 0.0)

    def priced(self, arm: Arm, home: Arm) -> DraftLimit:
        """All that the arm may draft, at the prices of the best speed that is had."""
        rate = max([1 / self.plain_seconds(), *(self.rate(a) for a in (arm, home) if a.weight)])
        prices = tuple([slope * rate + _LEAST for slope in self.curve.slopes(self.past, self.nodes)])
        return DraftLimit(self.nodes, arm.depth, arm.step * rate, prices[-1] if prices else 1.0, prices)
