"""Which drafter, how many nodes, how deep: what yields most tokens a second, as far as is known; nothing included.

Goodput after SmartSpec (2406.14066): expected tokens of a round over the seconds that the cost curve predicts for
it. Depth and nodes follow from prices (`DraftLimit`): drafters go on while a pass or a node is worth its seconds at
the present speed, which is where tokens over seconds is largest (Dinkelbach).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paceline.memory.room import Room
from paceline.runtime.contracts import DraftLimit, Round
from paceline.runtime.control.estimates import PATIENCE, Arm, CostCurve, Stretch
from paceline.runtime.control.lessons import Book, Lessons
from paceline.runtime.control.policy import (
    PLAIN_PATIENCE,
    STAY,
    Locked,
    Question,
    Settled,
    State,
    Step,
    Trial,
    decide,
    go_on,
    rounds_of,
)
from paceline.runtime.control.prospects import Prospects
from paceline.runtime.control.purse import Purse
from paceline.runtime.control.trace import Trace
from paceline.runtime.request import Request

OFF = "none"
_NOTHING = DraftLimit(0, 0)
_USUAL_ANSWER, _NEW = 128.0, 0.3
"""Tokens that the first answer is expected to have, and how fast later ones correct that."""
_STALL = 3.0
"""A round counts for at most so many times its predicted seconds: what is longer was not the drafter's doing."""
_FIXED_NODE, _FIXED_DEPTH = 0.1, 4
"""Price of a node, and depth, where the clock may not choose."""
_KEPT, _GUESSED = 12, 2
"""Rounds that what was learnt counts as at most, once an answer or a stretch begins, and of a drafter without a model
that paid once an answer begins: what it finds is the text's own."""


class Controller:
    """Chooses among arms every few rounds; `switch` is told the name of the one in charge.

    With `off` plain decoding is always an arm, under the name "none"; without it there is one arm, and only its
    limits are chosen. Trials of arms that may lose are paid from a purse. What is learnt of costs and acceptance is
    read from `book` when an answer begins and written to it when it ends, so that all who share the book learn from it.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        curve: CostCurve,
        nodes: int,
        off: bool = True,
        switch: Callable[[str], None] = lambda name: None,
        book: Book | None = None,
    ) -> None:
        self.ceiling: Room | None = None
        self._known, self._nodes, self._off, self._switch = Prospects(curve, nodes), nodes, off, switch
        self._plain = Arm(OFF, 0, patience=PLAIN_PATIENCE, wait=PLAIN_PATIENCE)
        self._arms = [*arms, self._plain] if off else list(arms)
        self._state: State = Settled(self._plain if off else self._arms[0])
        self._purse, self._expected, self._book = Purse(), _USUAL_ANSWER, book or Book()
        self._begun = self._left = self._asked = 0
        self._limit = _NOTHING
        self._alone = 1
        """Rounds of one row in a row; the one before an answer's first counts as such."""
        self._stretch = Stretch()
        self._won = 0, 0.0
        self._verified: list[float] = []
        self._judged = self._spent = 0.0
        self.trace = Trace()

    @property
    def chosen(self) -> str:
        """The drafter that it has settled on."""
        return self._state.home.name

    def begin(self, request: Request, reused: int) -> None:
        """A new answer; `reused` tokens of its prompt the drafters may have seen before."""
        self._alone = 1
        self._verified.clear()
        self._judged = self._spent = 0.0
        self.trace, self._stretch, self._won = Trace(), Stretch(), (0, 0.0)
        self._known.past = self._begun = request.prompt_length
        if request.draft_dependent:
            self._take(Step(Locked(self._arms[0]), self._purse.seconds))
            return
        self._recall()
        for arm in self._arms:
            if arm.models or arm.plain:
                arm.fade(_KEPT)
                arm.wait = min(arm.wait, arm.patience)
            else:
                # What paid may pay again; what did not is as good as unknown.
                arm.fade(_GUESSED if arm.weight and self._known.saved(arm, 1) > 0 else 0.0)
                arm.wait, arm.patience = 0, PATIENCE
            arm.seen = min(arm.seen, reused)
        home = self._arms[0] if not self._off else self._begin_off()
        self._state = Settled(home)
        self._take(go_on(self._question(), home) if self._off else Step(self._state, self._purse.seconds))

    def _begin_off(self) -> Arm:
        """Start with the arm that paid, if this answer can be expected to win what the prompt costs it."""
        known = self._known
        first = not any(arm.weight for arm in self._arms)
        owed = [known.owed(arm) for arm in self._arms if first and self._repays(arm)]
        self._purse.begin(first, known.plain_seconds(), max(owed, default=0.0))
        best = self._question().best()
        return best if self._repays(best) else self._plain

    def _repays(self, arm: Arm) -> bool:
        return self._known.saved(arm, self._expected) >= self._known.owed(arm)

    def limit(self, room: int) -> DraftLimit:
        """What the arm in charge may draft."""
        state = self._state
        if state.arm.plain:
            return _NOTHING
        if self.ceiling is not None and not self._permitted(state.arm):
            if not self._off:
                return _NOTHING
            locked = isinstance(state, Locked)
            left = Locked(self._allowed()[0]) if locked else Settled(self._question().best())
            self._take(Step(left, self._purse.seconds))
            if left.arm.plain:
                return _NOTHING
        return self._limit.within(room, self.ceiling)

    def learn(self, done: Round) -> None:
        """Follows every round."""
        self._left -= 1
        state = self._state
        if isinstance(state, Locked):
            return
        total = done.draft + done.verify + done.judge + done.wait
        if state.arm.plain:
            self._alone += 1
            self._verified.append(done.verify)
            self._judged, self._spent = self._judged + done.judge, self._spent + total
            if self._left <= 0:
                self._count_quiet(self._asked)
                self._decide()
            return
        known, outcome, now = self._known, done.outcome, state.arm
        got, rows = len(outcome.verdict.path), len(outcome.tree)
        self._alone = self._alone + 1 if rows == 1 else 0
        # Nothing was drafted, nor in the round before: that is plain decoding.
        width = 0 if self._alone > 1 else rows
        past, known.past = known.past, known.past + got
        known.judge_a_token = _follow(known.judge_a_token, done.judge, got)
        if done.verify > 0:
            known.curve.learn(width, past, done.verify)
        one, pass_seconds = known.curve.seconds(0, past), known.curve.seconds(width, past)
        depth = int(outcome.tree.depths().max()) if rows > 1 else 0
        caught_up = now.seen == past
        usual = now.flat + now.step * depth + (past - now.seen) * now.catch_up
        usual += pass_seconds + got * known.judge_a_token
        now.learn(got, depth, done.draft if caught_up else 0.0, width)
        now.seen = known.past
        seconds = min(total, _STALL * usual)
        self._stretch.add(1, got, seconds, (pass_seconds + done.draft) / one, rows - 1, depth)
        self._won = self._won[0] + got, self._won[1] + seconds
        if self._left <= 0 or (isinstance(state, Trial) and self._lost(state.home) > self._purse.seconds):
            self._settle()
            self._decide()

    def _settle(self) -> None:
        """Book the rounds since the last decision."""
        now, (tokens, seconds) = self._state.arm, self._won
        if tokens:
            for arm in self._arms:
                if arm.models and arm.part == now.part:
                    arm.seen = now.seen
            self._won = 0, 0.0
            self._earn(tokens, seconds)

    def moved(self, length: int) -> None:
        """The context slid: from here on the text is this long."""
        if self._state.arm.plain:
            self._count_quiet(self._asked - self._left)
            self._asked = self._left
        self._settle()
        self._begun -= self._known.past - length
        self._known.past = length
        for arm in self._arms:
            arm.seen = 0

    def finish(self) -> Trace | None:
        """The answer has ended: what was chosen, None where nothing was."""
        if isinstance(self._state, Locked):
            return None
        if self._state.arm.plain:
            self._count_quiet(self._asked - self._left)
        self._settle()
        self._expected += _NEW * (self._made() - self._expected)
        self._note("end")
        self._book.keep(Lessons.of(self._arms, self._known, self._purse, self._expected))
        return self.trace

    def _recall(self) -> None:
        """What this and others learnt since."""
        lessons = self._book.newest()
        if lessons is not None:
            self._expected = lessons.teach(self._arms, self._known, self._purse)

    def _made(self) -> int:
        return self._known.past - self._begun

    def _question(self) -> Question:
        return Question(self._known, self._allowed(), self._made(), self._stretch, self._purse.seconds)

    def _allowed(self) -> list[Arm]:
        """The arms that memory allows and whose members are worth joining."""
        return [a for a in self._arms if self._permitted(a) and self._known.joins(a, self._arms)]

    def _permitted(self, arm: Arm) -> bool:
        """Whether memory allows it."""
        top = self.ceiling
        return top is None or arm.plain or (top.nodes > 0 and (top.models or not arm.models))

    def _lost(self, other: Arm) -> float:
        return self._stretch.seconds - self._stretch.tokens / self._known.rate(other)

    def _earn(self, tokens: int, seconds: float) -> None:
        """Time passes: waits get shorter, and some of it may be spent on trials."""
        for arm in self._arms:
            if arm is not self._state.arm:
                arm.wait -= tokens
        plain = self._known.plain_seconds()
        self._purse.earn(self._made(), seconds, tokens * plain - seconds, plain)

    def _decide(self) -> None:
        state = self._state
        self._take(decide(self._question(), state) if self._off else Step(state, self._purse.seconds))

    def _take(self, step: Step) -> None:
        """Act on a decision: who is in charge, at the prices of the moment, and for how many rounds."""
        before, now = self._state, step.state
        self._purse.seconds = step.seconds
        if step.saving is not None:
            self._purse.saving = step.saving
        for arm, wait, patience in step.waits:
            arm.wait, arm.patience = wait, patience
        fresh = not self._stretch.rounds or isinstance(before, Trial) or isinstance(now, Trial)
        if not step.goes_on and (fresh or now.arm is not before.arm):
            self._note(step.verdict)
            self._stretch = Stretch(self._made())
            self._switch(now.arm.name)
            now.arm.fade(_KEPT)
        self._state = now
        soonest = min((arm.wait for arm in self._arms if arm is not now.arm), default=0)
        self._left = self._asked = STAY if step.goes_on else rounds_of(now, self._made(), soonest)
        if isinstance(now, Locked):
            depth = min(now.arm.depth, _FIXED_DEPTH)
            self._limit = DraftLimit(self._nodes, depth, now.arm.fixed, _FIXED_NODE)
        elif not now.arm.plain:
            self._limit = self._known.priced(now.arm, now.home)

    def _count_quiet(self, rounds: int) -> None:
        """What some rounds of plain decoding taught."""
        known, verified, judge, spent = self._known, sorted(self._verified), self._judged, self._spent
        self._verified.clear()
        self._judged = self._spent = 0.0
        if rounds <= 0:
            return
        known.judge_a_token = _follow(known.judge_a_token, judge, rounds)
        if verified:
            # The median: one pass that the system held up says nothing of the others.
            known.curve.learn(0, known.past, verified[len(verified) // 2], rounds)
        known.past += rounds
        self._plain.seen = known.past
        self._stretch.add(rounds, rounds, spent, rounds)
        self._earn(rounds, spent)

    def _note(self, verdict: str) -> None:
        """Write the stretch that ends here into the trace."""
        if self._stretch.rounds:
            arm, trial = self._state.arm, isinstance(self._state, Trial)
            gain = self._known.rate(arm) * self._known.plain_seconds()
            self.trace.add(self._stretch.phase(arm.name, trial, gain, verdict))
            self._stretch = Stretch(self._made())


def _follow(judge_a_token: float, judge: float, tokens: int) -> float:
    """Mean seconds that judging a token takes, after so many more were judged."""
    if judge <= 0:
        return judge_a_token
    return judge_a_token + min(0.05 * tokens, 0.4) * (min(judge / tokens, 10 * judge_a_token) - judge_a_token)
