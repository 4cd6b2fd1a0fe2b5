"""Which drafter, how many nodes, how deep: what yields most tokens a second, as far as is known; nothing included.

Goodput after SmartSpec (2406.14066): expected tokens of a round over the seconds that the cost curve predicts for
it. Depth and nodes follow from prices (`DraftLimit`): drafters go on while a pass or a node is worth its seconds at
the present speed, which is where tokens over seconds is largest (Dinkelbach).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from paceline.memory.ladder import Ceiling
from paceline.runtime.arms import Arm, Stretch
from paceline.runtime.contracts import DraftLimit, Outcome, Request
from paceline.runtime.costs import CostCurve
from paceline.runtime.meter import Meter
from paceline.runtime.trace import Trace

OFF = "none"
_NOTHING = DraftLimit(0, 0)
_FIRST_TOKENS = 64
"""Trials in them are paid otherwise: what is learnt first pays longest."""
_FIRST_BUDGET, _LATER_BUDGET = 16.0, 1.0
"""Plain tokens whose time trials may cost in the first 64 tokens: of the first answer, and of later ones."""
_SHARE, _SAVED = 0.007, 12.0
"""After that: the share of the time, and the most that is saved up, in plain tokens."""
_TRIAL, _GLANCE, _STAY, _QUIET = 5, 2, 4, 8
"""Rounds between two decisions: in a first trial and in later ones, while drafting, while not drafting."""
_BETTER = 1.02
"""A change has to promise this much."""
_PATIENCE, _PLAIN_PATIENCE = 24, 128
"""Tokens from one trial to the next, at first; they double while an arm loses."""
_MOST_PATIENCE = 250
"""At most so many times the tokens that a trial risks: what costs little is tried often."""
_FIXED_STEP, _FIXED_NODE, _FIXED_DEPTH = 0.3, 0.1, 4
"""Prices and depth where the clock may not choose."""


class FixedLimit:
    """The same limit every round, cut to the room that is left."""

    def __init__(self, nodes: int, depth: int, step_price: float = 0.0, node_price: float = 0.0) -> None:
        self._limit = DraftLimit(nodes, depth, None, step_price, node_price)
        self.ceiling: Ceiling | None = None

    def limit(self, room: int) -> DraftLimit:
        """At most `room` levels, below the ceiling."""
        return _cut(self._limit, room, self.ceiling)

    def begin(self, request: Request, seconds: Mapping[str, float], reused: int = 0) -> None:
        """Nothing."""

    def learn(self, outcome: Outcome) -> None:
        """Nothing."""

    def moved(self, length: int) -> None:
        """Nothing."""

    def finish(self) -> Trace | None:
        """Nothing was chosen."""
        return None


class Controller:
    """Chooses among arms every few rounds; `switch` is told the name of the one in charge.

    With `off` plain decoding is always an arm, under the name "none"; without it there is one arm, and only its
    limits are chosen. Trials of arms that may lose are paid from a budget, a share of the time. Costs and
    acceptance are kept from one answer to the next; `begin` starts an answer, `finish` ends it.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        curve: CostCurve,
        nodes: int,
        off: bool = True,
        switch: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.ceiling: Ceiling | None = None
        self._curve, self._nodes, self._off, self._switch = curve, nodes, off, switch
        self._plain = Arm(OFF, 0, patience=_PLAIN_PATIENCE, wait=_PLAIN_PATIENCE)
        self._arms = [*arms, self._plain] if off else list(arms)
        self._home = self._now = self._plain if off else self._arms[0]
        self._trying = self._quiet = self._locked = False
        self._past = self._begun = self._left = self._asked = 0
        self._budget = -1.0
        self._limit = _NOTHING
        self._meter = Meter()
        self._stretch = Stretch()
        self.trace = Trace()

    @property
    def chosen(self) -> str:
        """The drafter that it has settled on."""
        return self._home.name

    def begin(self, request: Request, seconds: Mapping[str, float], reused: int = 0) -> None:
        """A new answer, whose `seconds` (docs/statistics.md) grow as it is decoded.

        reused: tokens of its prompt that the drafters may have seen before.
        """
        self._meter.follow(seconds)
        self.trace, self._stretch = Trace(), Stretch()
        self._trying, self._locked = False, request.drafted
        self._past = self._begun = request.prompt_length
        if self._locked:
            self._home = self._arms[0]
            self._go(self._home)
            return
        first = self._off and not any(arm.weight for arm in self._arms)
        reading = max((arm.catch_up for arm in self._arms), default=0.0) * self._past if first else 0.0
        free = (_FIRST_BUDGET if first else _LATER_BUDGET) * self._plain_seconds() + reading
        self._budget = max(self._budget, free)
        for arm in self._arms:
            arm.fade(8)
            arm.wait = min(arm.wait, arm.patience)
            arm.seen = min(arm.seen, reused)
        if self._off:
            self._home = max(self._known(), key=self._rate)
        self._go_on()

    def limit(self, room: int) -> DraftLimit:
        """What the arm in charge may draft."""
        if self._quiet:
            return _NOTHING
        if self.ceiling is not None and self._now.models and not self.ceiling.models:
            if not self._off:
                return _NOTHING
            self._home = max(self._known(), key=self._rate)
            self._go(self._home)
        return _cut(self._limit, room, self.ceiling)

    def learn(self, outcome: Outcome) -> None:
        """Follows every round."""
        self._left -= 1
        if self._quiet:
            if self._left <= 0:
                self._after_quiet(self._asked)
            return
        got, width = len(outcome.verdict.path), len(outcome.tree)
        past, self._past = self._past, self._past + got
        if self._locked:
            return
        spent = self._meter.read(got)
        if spent.verify > 0:
            self._curve.learn(width, past, spent.verify)
        one = self._curve.seconds(1, past)
        relative = self._curve.seconds(width, past) / one
        depth = int(outcome.tree.depths().max()) if width > 1 else 0
        now, s = self._now, self._stretch
        now.learn(got, depth, spent.draft if now.seen == past else 0.0, relative)
        now.seen = self._past
        s.rounds, s.tokens, s.nodes, s.levels = (
            s.rounds + 1,
            s.tokens + got,
            s.nodes + width - 1,
            s.levels + depth,
        )
        s.seconds, s.passes = s.seconds + spent.total, s.passes + relative + spent.draft / one
        self._earn(got, spent.total)
        if self._left <= 0 or (self._trying and self._lost(self._home) > self._budget):
            self._decide()

    def moved(self, length: int) -> None:
        """The context slid: from here on the text is this long."""
        if self._quiet:
            self._count_quiet(self._asked - self._left)
            self._asked = self._left
        self._begun -= self._past - length
        self._past = length
        for arm in self._arms:
            arm.seen = 0

    def finish(self) -> Trace | None:
        """The answer has ended: what was chosen, None where nothing was."""
        if self._locked:
            return None
        if self._quiet:
            self._count_quiet(self._asked - self._left)
        self._note("end")
        return self.trace

    # -- what is known ---------------------------------------------------------------------------------------

    def _plain_seconds(self) -> float:
        return self._curve.seconds(1, self._past) + self._meter.judge_a_token

    def _rate(self, arm: Arm) -> float:
        """Tokens a second; of an arm that never ran what it could be at best."""
        if arm is self._plain:
            return 1 / self._plain_seconds()
        if not arm.weight:
            return max(self._hope(arm, depth) for depth in range(1, max(min(arm.depth, self._nodes), 1) + 1))
        verify = arm.relative * self._curve.seconds(1, self._past)
        return arm.tokens / (arm.draft + verify + arm.tokens * self._meter.judge_a_token)

    def _hope(self, arm: Arm, depth: int) -> float:
        """Tokens a second if it drafts to this depth and is accepted as can be hoped."""
        tokens = sum(arm.hope**level for level in range(depth + 1))
        cost = arm.flat + arm.step * depth + self._curve.seconds(1 + depth, self._past)
        return tokens / (cost + tokens * self._meter.judge_a_token)

    def _known(self) -> list[Arm]:
        return [arm for arm in self._allowed() if arm.weight or arm is self._plain]

    def _allowed(self) -> list[Arm]:
        """The arms that memory allows and whose members are worth joining."""
        barred = self.ceiling is not None and not self.ceiling.models
        return [a for a in self._arms if not (barred and a.models) and self._joins(a)]

    def _joins(self, arm: Arm) -> bool:
        """A fusion is tried where each member alone brings something and one of them pays."""
        members = [a for a in self._arms if a.name in arm.members]
        if not members or arm.weight:
            return True
        plain = 1 / self._plain_seconds()
        return all(a.weight and a.tokens > 1.08 for a in members) and any(
            self._rate(a) > plain for a in members
        )

    def _lost(self, other: Arm) -> float:
        """Seconds that this stretch cost more than another arm would have taken for its tokens."""
        return self._stretch.seconds - self._stretch.tokens / self._rate(other)

    def _risk(self, arm: Arm) -> float:
        """Seconds that a trial may lose before it is given up: catching up, and two rounds that yield one token."""
        home, one = 1 / self._rate(self._home), self._curve.seconds(1, self._past)
        if arm is self._plain:
            return _STAY * max(self._plain_seconds() - home, 0.0)
        draft = arm.draft if arm.weight else arm.flat + 2 * arm.step
        verify = arm.relative * one if arm.weight else self._curve.seconds(3, self._past)
        behind = max(self._past - arm.seen, 0) * arm.catch_up
        return behind + 2 * max(draft + verify + self._meter.judge_a_token - home, 0.0)

    # -- what follows from it --------------------------------------------------------------------------------

    def _earn(self, tokens: int, seconds: float) -> None:
        """Time passes: waits get shorter, and after the first tokens a share of it may be spent on trials."""
        for arm in self._arms:
            if arm is not self._now:
                arm.wait -= tokens
        made = self._past - self._begun
        if made - tokens < _FIRST_TOKENS <= made:
            self._budget = min(self._budget, 0.0)
        if made >= _FIRST_TOKENS:
            self._budget = min(self._budget + _SHARE * seconds, _SAVED * self._plain_seconds())

    def _decide(self) -> None:
        now = self._now
        if not self._off:
            self._go(now)
        elif self._trying:
            self._budget -= max(self._lost(self._home), 0.0)
            if self._rate(now) > _BETTER * self._rate(self._home):
                self._note("kept")
                now.patience, self._home = _PLAIN_PATIENCE if now is self._plain else _PATIENCE, now
            else:
                now.wait, most = now.patience, _MOST_PATIENCE * self._risk(now) * self._rate(self._home)
                now.patience = max(min(2 * now.patience, int(most)), 2 * _PATIENCE)
                self._note(f"not kept, next try after {now.wait} tokens")
            self._go_on()
        else:
            best = max(self._known(), key=self._rate)
            if self._rate(best) > _BETTER * self._rate(now):
                best.wait = 0
                if best is self._plain:
                    self._note("off")
                    self._budget -= max(self._lost(best), 0.0)
                    now.wait, self._home = now.patience, best
            self._go_on()

    def _go_on(self) -> None:
        """With the most overdue trial that promises enough, once it can be paid; else with the home arm."""
        need, most = _BETTER * self._rate(self._home), _SAVED * self._plain_seconds()
        due = [a for a in self._allowed() if a is not self._home and a.wait <= 0] if self._off else []
        for arm in sorted(due, key=lambda a: a.wait / a.patience):
            risk = self._risk(arm)
            if not arm.weight and arm is not self._plain and self._rate(arm) < need:
                arm.wait = _PATIENCE
            elif risk <= self._budget:
                self._go(arm, trying=True)
                return
            elif risk <= most:
                break
        self._go(self._home)

    def _go(self, arm: Arm, trying: bool = False) -> None:
        """Put an arm in charge, at the prices of the moment."""
        if arm is not self._now or trying or self._trying or not self._stretch.rounds:
            self._note(f"tries {arm.name}" if trying else "")
            self._stretch = Stretch(self._past - self._begun)
            self._switch(arm.name)
            arm.fade(12)
        self._now, self._trying, self._quiet = arm, trying, arm is self._plain
        self._left = self._asked = (
            (_STAY if trying else _QUIET) if self._quiet else _TRIAL if trying else _STAY
        )
        if self._locked:
            depth = min(arm.depth, _FIXED_DEPTH)
            self._limit = DraftLimit(self._nodes, depth, None, _FIXED_STEP, _FIXED_NODE)
        elif not self._quiet:
            self._limit = self._priced(arm)

    def _rounds(self, arm: Arm, trying: bool) -> int:
        if self._quiet:
            return _STAY if trying else _QUIET
        return _STAY if not trying else _GLANCE if arm.weight and not arm.models else _TRIAL

    def _priced(self, arm: Arm) -> DraftLimit:
        known = [self._rate(a) for a in (arm, self._home) if a.weight]
        rate = max([1 / self._plain_seconds(), *known])
        prices = tuple([slope * rate + 0.005 for slope in self._curve.slopes(self._past, self._nodes)])
        return DraftLimit(
            self._nodes, arm.depth, None, arm.step * rate, prices[-1] if prices else 1.0, prices
        )

    def _after_quiet(self, rounds: int) -> None:
        self._count_quiet(rounds)
        self._decide()

    def _count_quiet(self, rounds: int) -> None:
        """What some rounds of plain decoding taught."""
        spent = self._meter.read(rounds)
        if rounds <= 0:
            return
        if spent.verify > 0:
            self._curve.learn(1, self._past, spent.verify / rounds, rounds)
        self._past += rounds
        self._plain.seen = self._past
        s = self._stretch
        s.rounds, s.tokens, s.passes = s.rounds + rounds, s.tokens + rounds, s.passes + rounds
        s.seconds += spent.total
        self._earn(rounds, spent.total)

    def _note(self, verdict: str) -> None:
        """Write the stretch that ends here into the trace."""
        if self._stretch.rounds:
            gain = self._rate(self._now) * self._plain_seconds()
            self.trace.add(self._stretch.phase(self._now.name, self._trying, gain, verdict))
            self._stretch = Stretch(self._past - self._begun)


def _cut(limit: DraftLimit, room: int, ceiling: Ceiling | None) -> DraftLimit:
    nodes, depth = limit.nodes, min(limit.depth, max(room, 0))
    if ceiling is not None:
        nodes, depth = min(nodes, ceiling.nodes), min(depth, ceiling.depth)
    nodes = nodes if depth > 0 else 0
    if nodes == limit.nodes and depth == limit.depth:
        return limit
    return DraftLimit(nodes, depth, limit.deadline, limit.step_price, limit.node_price, limit.node_prices)
