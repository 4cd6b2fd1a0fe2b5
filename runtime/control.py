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
from paceline.runtime.prospects import Prospects
from paceline.runtime.trace import Trace

OFF = "none"
_NOTHING = DraftLimit(0, 0)
_FIRST_TOKENS = 64
"""Trials in them are paid otherwise: what is learnt first pays longest."""
_FIRST_BUDGET, _LATER_BUDGET = 16.0, 1.0
"""Plain tokens whose time trials may cost in the first 64 tokens: of the first answer, and of later ones."""
_SHARE, _SAVED = 0.008, 12.0
"""After that: the share of the time, and the most that is saved up, in plain tokens."""
_TRIAL, _GLANCE, _STAY, _QUIET, _SETTLED = 5, 2, 4, 8, 32
"""Rounds between two decisions: in a first trial and in later ones, while drafting, while not drafting at first and
later: a decision costs some 30 us."""
_FAMILIAR = 16
"""Rounds after which an arm is known well enough to decide half as often."""
_BETTER, _DOUBT = 1.02, 0.3
"""A change has to promise this much; the second is added, over the rounds that are known, after a trial."""
_PATIENCE, _PLAIN_PATIENCE, _HOPELESS = 24, 128, 256
"""Tokens from one trial to the next, at first; they double while an arm loses. The last is of arms that cannot pay."""
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
        self._prospects, self._nodes, self._off, self._switch = Prospects(curve, nodes), nodes, off, switch
        self._rate = self._prospects.rate
        self._plain = Arm(OFF, 0, patience=_PLAIN_PATIENCE, wait=_PLAIN_PATIENCE)
        self._arms = [*arms, self._plain] if off else list(arms)
        self._home = self._now = self._plain if off else self._arms[0]
        self._trying = self._quiet = self._locked = False
        self._begun = self._left = self._asked = 0
        self._budget = -1.0
        self._limit = _NOTHING
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
        self._prospects.meter.follow(seconds)
        self.trace, self._stretch = Trace(), Stretch()
        self._trying, self._locked = False, request.drafted
        self._prospects.past = self._begun = request.prompt_length
        if self._locked:
            self._home = self._arms[0]
            self._go(self._home)
            return
        first = self._off and not any(arm.weight for arm in self._arms)
        free = (_FIRST_BUDGET if first else _LATER_BUDGET) * self._prospects.plain_seconds()
        if first:
            free += max([arm.catch_up for arm in self._arms]) * self._begun
        self._budget = max(self._budget, free)
        for arm in self._arms:
            arm.fade(12)
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
            self._home = self._allowed()[0] if self._locked else max(self._known(), key=self._rate)
            self._go(self._home)
        return _cut(self._limit, room, self.ceiling)

    def learn(self, outcome: Outcome) -> None:
        """Follows every round."""
        self._left -= 1
        if self._locked:
            return
        if self._quiet:
            if self._left <= 0:
                self._count_quiet(self._asked)
                self._decide()
            return
        known, got, width = self._prospects, len(outcome.verdict.path), len(outcome.tree)
        past, known.past = known.past, known.past + got
        spent = known.meter.read(got)
        if spent.verify > 0:
            known.curve.learn(width, past, spent.verify)
        one = known.curve.seconds(1, past)
        relative = known.curve.seconds(width, past) / one
        depth = int(outcome.tree.depths().max()) if width > 1 else 0
        self._now.learn(got, depth, spent.draft if self._now.seen == past else 0.0, relative)
        self._now.seen = known.past
        self._stretch.add(1, got, spent.total, relative + spent.draft / one, width - 1, depth)
        self._earn(got, spent.total)
        if self._left <= 0 or (self._trying and self._lost(self._home) > self._budget):
            self._decide()

    def moved(self, length: int) -> None:
        """The context slid: from here on the text is this long."""
        if self._quiet:
            self._count_quiet(self._asked - self._left)
            self._asked = self._left
        self._begun -= self._prospects.past - length
        self._prospects.past = length
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

    def _known(self) -> list[Arm]:
        return [arm for arm in self._allowed() if arm.weight or arm.plain]

    def _allowed(self) -> list[Arm]:
        """The arms that memory allows and whose members are worth joining."""
        barred = self.ceiling is not None and not self.ceiling.models
        return [a for a in self._arms if not (barred and a.models) and self._prospects.joins(a, self._arms)]

    def _lost(self, other: Arm) -> float:
        """Seconds that this stretch cost more than another arm would have taken for its tokens."""
        return self._stretch.seconds - self._stretch.tokens / self._rate(other)

    def _earn(self, tokens: int, seconds: float) -> None:
        """Time passes: waits get shorter, and after the first tokens a share of it may be spent on trials."""
        for arm in self._arms:
            if arm is not self._now:
                arm.wait -= tokens
        made = self._prospects.past - self._begun
        if made - tokens < _FIRST_TOKENS <= made:
            self._budget = min(self._budget, 0.0)
        if made >= _FIRST_TOKENS:
            self._budget = min(self._budget + _SHARE * seconds, _SAVED * self._prospects.plain_seconds())

    def _decide(self) -> None:
        now = self._now
        if not self._off:
            self._go(now)
        elif self._trying:
            self._budget -= max(self._lost(self._home), 0.0)
            doubt = 0.0 if now.plain else _DOUBT / now.weight
            if self._rate(now) > (_BETTER + doubt) * self._rate(self._home):
                self._note("kept")
                now.patience, self._home = _PLAIN_PATIENCE if now.plain else _PATIENCE, now
            else:
                risked = self._prospects.risk(now, self._home) * self._rate(self._home)
                now.wait = now.patience
                now.patience = max(min(2 * now.patience, int(_MOST_PATIENCE * risked)), 2 * _PATIENCE)
                self._note(f"off, next try in {now.wait}")
            self._go_on()
        else:
            best = max(self._known(), key=self._rate)
            if self._rate(best) > _BETTER * self._rate(now):
                best.wait = 0
                if best.plain:
                    self._note("off")
                    self._budget -= max(self._lost(best), 0.0)
                    now.wait, self._home = now.patience, best
            self._go_on()

    def _go_on(self) -> None:
        """With the most hopeful trial that is due, once it can be paid; else with the home arm."""
        need, most = _BETTER * self._rate(self._home), _SAVED * self._prospects.plain_seconds()
        due = [a for a in self._allowed() if a is not self._home and a.wait <= 0] if self._off else []
        for arm in sorted(due, key=self._prospects.luck, reverse=True):
            risk = self._prospects.risk(arm, self._home)
            if not arm.weight and not arm.plain and self._rate(arm) < need:
                arm.wait = _HOPELESS
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
            self._stretch = Stretch(self._prospects.past - self._begun)
            self._switch(arm.name)
            arm.fade(12)
        self._now, self._trying, self._quiet = arm, trying, arm.plain
        self._left = self._asked = self._rounds(arm, trying)
        if self._locked:
            depth = min(arm.depth, _FIXED_DEPTH)
            self._limit = DraftLimit(self._nodes, depth, None, _FIXED_STEP, _FIXED_NODE)
        elif not self._quiet:
            self._limit = self._prospects.priced(arm, self._home)

    def _rounds(self, arm: Arm, trying: bool) -> int:
        if self._quiet:
            settled = self._prospects.past - self._begun >= _FIRST_TOKENS
            return _STAY if trying else _SETTLED if settled else _QUIET
        if trying:
            return _GLANCE if arm.weight and not arm.models else _TRIAL
        return _STAY if arm.weight < _FAMILIAR else 2 * _STAY

    def _count_quiet(self, rounds: int) -> None:
        """What some rounds of plain decoding taught."""
        spent = self._prospects.meter.read(rounds)
        if rounds <= 0:
            return
        if spent.verify > 0:
            self._prospects.curve.learn(1, self._prospects.past, spent.verify / rounds, rounds)
        self._prospects.past += rounds
        self._plain.seen = self._prospects.past
        self._stretch.add(rounds, rounds, spent.total, rounds)
        self._earn(rounds, spent.total)

    def _note(self, verdict: str) -> None:
        """Write the stretch that ends here into the trace."""
        if self._stretch.rounds:
            gain = self._rate(self._now) * self._prospects.plain_seconds()
            self.trace.add(self._stretch.phase(self._now.name, self._trying, gain, verdict))
            self._stretch = Stretch(self._prospects.past - self._begun)


def _cut(limit: DraftLimit, room: int, ceiling: Ceiling | None) -> DraftLimit:
    nodes, depth = limit.nodes, min(limit.depth, max(room, 0))
    if ceiling is not None:
        nodes, depth = min(nodes, ceiling.nodes), min(depth, ceiling.depth)
    nodes = nodes if depth > 0 else 0
    if nodes == limit.nodes and depth == limit.depth:
        return limit
    return DraftLimit(nodes, depth, limit.deadline, limit.step_price, limit.node_price, limit.node_prices)
