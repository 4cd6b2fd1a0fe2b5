"""Which drafter, how many nodes, how deep: what yields most tokens a second, as far as is known; nothing included.

Goodput after SmartSpec (2406.14066): expected tokens of a round over the seconds that the cost curve predicts for
it. Depth and nodes follow from prices (`DraftLimit`): drafters go on while a pass or a node is worth its seconds at
the present speed, which is where tokens over seconds is largest (Dinkelbach).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paceline.memory.ladder import Ceiling
from paceline.runtime.contracts import DraftLimit, Round
from paceline.runtime.control.arms import Arm, Stretch
from paceline.runtime.control.costs import CostCurve
from paceline.runtime.control.prospects import Prospects
from paceline.runtime.control.trace import Trace
from paceline.runtime.request import Request

OFF = "none"
_NOTHING = DraftLimit(0, 0)
_FIRST_TOKENS = 64
"""Trials in them are paid otherwise: what is learnt first pays longest."""
_FIRST_BUDGET = 16.0
"""Plain tokens whose time trials may cost in the first 64 tokens of the first answer."""
_SHARE, _WON, _SAVED = 0.003, 0.02, 12.0
"""After that: the share of the time, and of the time won against plain decoding; the most that is saved up, in plain
tokens, unless a trial needs more."""
_TRIAL, _GLANCE, _STAY, _QUIET, _SETTLED = 5, 2, 4, 8, 64
"""Rounds between two decisions: in a first trial and in later ones, while drafting, while not drafting at first and
later: a decision costs some 30 us."""
_LONGEST, _CHEAP = 48, 0.25
"""A trial that seems to win and has lost less than so many plain tokens goes on, up to so many rounds."""
_FAMILIAR = 16
"""Rounds after which an arm is known well enough to decide a third as often."""
_BETTER, _PLAINLY = 1.02, 1.004
"""A change has to promise this much, one to plain decoding the second."""
_DOUBT, _RIVAL = 0.3, 1.0
"""Added, over the rounds that are known, after a trial against plain decoding, and against a drafter that pays: of two
that pay the one that was lucky for a few rounds must not drive out the better one."""
_USUAL_ANSWER, _NEW = 128.0, 0.3
"""Tokens that the first answer is expected to have, and how fast later ones correct that."""
_STALL = 3.0
"""A round counts for at most so many times its predicted seconds: what is longer was not the drafter's doing."""
_PATIENCE, _PLAIN_PATIENCE, _HOPELESS = 24, 128, 192
"""Tokens from one trial to the next, at first; they double while an arm loses. The last is of arms that cannot pay."""
_MOST_PATIENCE = 250
"""At most so many times the tokens that a trial risks: what costs little is tried often."""
_FIXED_STEP, _FIXED_NODE, _FIXED_DEPTH = 0.3, 0.1, 4
"""Prices and depth where the clock may not choose."""


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
        self._trying = self._quiet = self._locked = self._first = False
        self._begun = self._left = self._asked = 0
        self._budget, self._dear, self._expected = -1.0, 0.0, _USUAL_ANSWER
        self._limit = _NOTHING
        self._stretch = Stretch()
        self._won = 0, 0.0
        self._verified = self._judged = self._spent = 0.0
        self.trace = Trace()

    @property
    def chosen(self) -> str:
        """The drafter that it has settled on."""
        return self._home.name

    def begin(self, request: Request, reused: int) -> None:
        """A new answer; `reused` tokens of its prompt the drafters may have seen before."""
        self._verified = self._judged = self._spent = 0.0
        self.trace, self._stretch, self._won = Trace(), Stretch(), (0, 0.0)
        self._trying, self._locked = False, request.draft_dependent
        self._prospects.past = self._begun = request.prompt_length
        if self._locked:
            self._home = self._arms[0]
            self._go(self._home)
            return
        for arm in self._arms:
            arm.fade(12)
            arm.wait = min(arm.wait, arm.patience)
            arm.seen = min(arm.seen, reused)
        if self._off:
            self._begin_off()
        self._go_on()

    def _begin_off(self) -> None:
        """Start with the arm that paid, if this answer can be expected to win what the prompt costs it."""
        known = self._prospects
        self._first = not any(arm.weight for arm in self._arms)
        if self._first:
            owed = [known.owed(arm) for arm in self._arms if self._repays(arm)]
            self._budget = max(self._budget, _FIRST_BUDGET * known.plain_seconds() + max(owed, default=0.0))
        best = max(self._known(), key=self._rate)
        self._home = best if self._repays(best) else self._plain

    def _repays(self, arm: Arm) -> bool:
        return self._prospects.saved(arm, self._expected) >= self._prospects.owed(arm)

    def limit(self, room: int) -> DraftLimit:
        """What the arm in charge may draft."""
        if self._quiet:
            return _NOTHING
        if self.ceiling is not None and not self._permitted(self._now):
            if not self._off:
                return _NOTHING
            self._home = self._allowed()[0] if self._locked else max(self._known(), key=self._rate)
            self._go(self._home)
            if self._quiet:
                return _NOTHING
        return self._limit.within(room, self.ceiling)

    def learn(self, done: Round) -> None:
        """Follows every round."""
        self._left -= 1
        if self._locked:
            return
        total = done.draft + done.verify + done.judge + done.wait
        if self._quiet:
            self._verified, self._judged = self._verified + done.verify, self._judged + done.judge
            self._spent += total
            if self._left <= 0:
                self._count_quiet(self._asked)
                self._decide()
            return
        known, outcome = self._prospects, done.outcome
        got, width = len(outcome.verdict.path), len(outcome.tree)
        past, known.past = known.past, known.past + got
        known.judge_a_token = _follow(known.judge_a_token, done.judge, got)
        if done.verify > 0:
            known.curve.learn(width, past, done.verify)
        one, pass_seconds = known.curve.seconds(1, past), known.curve.seconds(width, past)
        depth = int(outcome.tree.depths().max()) if width > 1 else 0
        now, caught_up = self._now, self._now.seen == past
        usual = now.flat + now.step * depth + (past - now.seen) * now.catch_up
        usual += pass_seconds + got * known.judge_a_token
        now.learn(got, depth, done.draft if caught_up else 0.0, pass_seconds / one)
        now.seen = known.past
        seconds = min(total, _STALL * usual)
        self._stretch.add(1, got, seconds, (pass_seconds + done.draft) / one, width - 1, depth)
        self._won = self._won[0] + got, self._won[1] + seconds
        if self._left <= 0 or (self._trying and self._lost(self._home) > self._budget):
            self._settle()
            self._decide()

    def _settle(self) -> None:
        """Book the rounds since the last decision."""
        now, (tokens, seconds) = self._now, self._won
        if tokens:
            for arm in self._arms:
                if arm.models and arm.part == now.part:
                    arm.seen = now.seen
            self._won = 0, 0.0
            self._earn(tokens, seconds)

    def moved(self, length: int) -> None:
        """The context slid: from here on the text is this long."""
        if self._quiet:
            self._count_quiet(self._asked - self._left)
            self._asked = self._left
        self._settle()
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
        self._settle()
        self._expected += _NEW * (self._prospects.past - self._begun - self._expected)
        self._note("end")
        return self.trace

    def _known(self) -> list[Arm]:
        return [arm for arm in self._allowed() if arm.weight or arm.plain]

    def _allowed(self) -> list[Arm]:
        """The arms that memory allows and whose members are worth joining."""
        return [a for a in self._arms if self._permitted(a) and self._prospects.joins(a, self._arms)]

    def _permitted(self, arm: Arm) -> bool:
        """Whether memory allows it."""
        top = self.ceiling
        return top is None or arm.plain or (top.nodes > 0 and (top.models or not arm.models))

    def _lost(self, other: Arm) -> float:
        """Seconds that this stretch cost more than another arm would have taken for its tokens."""
        return self._stretch.seconds - self._stretch.tokens / self._rate(other)

    def _earn(self, tokens: int, seconds: float) -> None:
        """Time passes: waits get shorter, and after the first tokens a share of it may be spent on trials."""
        for arm in self._arms:
            if arm is not self._now:
                arm.wait -= tokens
        made = self._prospects.past - self._begun
        if self._first and made >= _FIRST_TOKENS:
            self._first, self._budget = False, min(self._budget, 0.0)
        if made >= _FIRST_TOKENS:
            plain = self._prospects.plain_seconds()
            earned = _SHARE * seconds + _WON * max(tokens * plain - seconds, 0.0)
            self._budget = min(self._budget + earned, max(_SAVED * plain, self._dear))

    def _decide(self) -> None:
        now = self._now
        if not self._off:
            self._go(now)
        elif self._trying:
            self._judge(now)
        else:
            best = max(self._known(), key=self._rate)
            if self._rate(best) > (_PLAINLY if best.plain else _BETTER) * self._rate(now):
                best.wait = 0
                if best.plain:
                    self._note("off")
                    self._budget -= max(self._lost(best), 0.0)
                    now.wait, self._home = now.patience, best
            self._go_on()

    def _judge(self, now: Arm) -> None:
        """A trial has had its rounds: keep the arm, go on while that costs next to nothing, or back to the home arm."""
        lost = self._lost(self._home)
        doubt = 0.0 if now.plain else (_DOUBT if self._home.plain else _RIVAL) / now.weight
        if self._rate(now) > (_BETTER + doubt) * self._rate(self._home):
            self._note("kept")
            now.patience, self._home = _PLAIN_PATIENCE if now.plain else _PATIENCE, now
        elif self._promises(now, lost):
            self._left = _STAY
            self._limit = self._prospects.priced(now, self._home)
            return
        else:
            risked = self._prospects.risk(now, self._home) * self._rate(self._home)
            now.wait = now.patience
            now.patience = max(min(2 * now.patience, int(_MOST_PATIENCE * risked)), 2 * _PATIENCE)
            self._note(f"off, next try in {now.wait}")
        self._budget -= max(lost, 0.0)
        self._go_on()

    def _promises(self, now: Arm, lost: float) -> bool:
        """Whether a trial that is not decided seems to win, and has cost next to nothing."""
        if now.plain or self._stretch.rounds >= _LONGEST or self._rate(now) <= self._rate(self._home):
            return False
        return lost <= min(_CHEAP * self._prospects.plain_seconds(), self._budget)

    def _go_on(self) -> None:
        """With the most hopeful trial that is due, once it can be paid; else with the home arm."""
        known, rate = self._prospects, self._rate(self._home)
        need, most = _BETTER * rate, _SAVED * known.plain_seconds()
        due = [a for a in self._allowed() if a is not self._home and a.wait <= 0] if self._off else []
        self._dear = 0.0
        for arm in sorted(due, key=known.luck, reverse=True):
            if not arm.plain and not arm.weight and self._rate(arm) < need:
                arm.wait = _HOPELESS
                continue
            risk, owed = known.risk(arm, self._home), known.owed(arm)
            if owed > 0 and self._rate(arm) > need and known.saved(arm, known.past - self._begun) >= owed:
                # It would have won by now what reading the text costs: so it may cost that (ski rental).
                self._budget = max(self._budget, 0.0) + owed
            if risk <= self._budget:
                self._go(arm, trying=True)
                return
            if risk <= most:
                break
            self._dear = min(self._dear or risk, risk)
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
            self._limit = DraftLimit(self._nodes, depth, _FIXED_STEP, _FIXED_NODE)
        elif not self._quiet:
            self._limit = self._prospects.priced(arm, self._home)

    def _rounds(self, arm: Arm, trying: bool) -> int:
        if self._quiet:
            settled = self._prospects.past - self._begun >= _FIRST_TOKENS
            return _STAY if trying else _SETTLED if settled else _QUIET
        if trying:
            return _GLANCE if arm.weight and not arm.models else _TRIAL
        return _STAY if arm.weight < _FAMILIAR else 3 * _STAY

    def _count_quiet(self, rounds: int) -> None:
        """What some rounds of plain decoding taught."""
        known, verify, judge, spent = self._prospects, self._verified, self._judged, self._spent
        self._verified = self._judged = self._spent = 0.0
        if rounds <= 0:
            return
        known.judge_a_token = _follow(known.judge_a_token, judge, rounds)
        if verify > 0:
            known.curve.learn(1, known.past, verify / rounds, rounds)
        known.past += rounds
        self._plain.seen = known.past
        self._stretch.add(rounds, rounds, spent, rounds)
        self._earn(rounds, spent)

    def _note(self, verdict: str) -> None:
        """Write the stretch that ends here into the trace."""
        if self._stretch.rounds:
            gain = self._rate(self._now) * self._prospects.plain_seconds()
            self.trace.add(self._stretch.phase(self._now.name, self._trying, gain, verdict))
            self._stretch = Stretch(self._prospects.past - self._begun)


def _follow(judge_a_token: float, judge: float, tokens: int) -> float:
    """Mean seconds that judging a token takes, after so many more were judged."""
    if judge <= 0:
        return judge_a_token
    return judge_a_token + min(0.05 * tokens, 0.4) * (min(judge / tokens, 10 * judge_a_token) - judge_a_token)
