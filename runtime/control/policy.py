"""What to do next, from what is known: states are values, and a decision is a function of its arguments alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from paceline.runtime.control.estimates import PATIENCE, Arm, Stretch
from paceline.runtime.control.prospects import TRIAL, Prospects
from paceline.runtime.control.purse import FIRST_TOKENS, SAVED

STAY, _GLANCE, _SETTLED = 4, 2, 64
"""Rounds between two decisions while drafting, in a trial of an arm that is known and has no model, and while not
drafting at most: a decision costs some 30 us."""
_FAMILIAR = 16
"""Rounds after which an arm is known well enough to decide a third as often."""
_LONGEST, _CHEAP = 48, 0.25
"""A trial that seems to win and has lost less than so many plain tokens goes on, up to so many rounds."""
_BETTER, _PLAINLY = 1.02, 1.004
"""A change has to promise this much, one to plain decoding the second."""
_LISTENING, _UNSURE = 1.015, 0.1
"""One from a drafter without a model to plain decoding, the second over the rounds that are known besides. While it
finds nothing it costs next to nothing, and nobody can tell when it will find something: so it stays, or comes back,
until what it finds was wrong too often."""
_TRIFLE = 1.0
"""Plain tokens that a trial of a drafter without a model may risk whatever was spent before."""
_DOUBT, _RIVAL = 0.3, 1.0
"""Added, over the rounds that are known, after a trial against plain decoding, and against a drafter that pays: of two
that pay the one that was lucky for a few rounds must not drive out the better one."""
PLAIN_PATIENCE = 128
"""The same as an arm's patience, of plain decoding and of arms that cannot pay."""
_MOST_PATIENCE = 250
"""At most so many times the tokens that a trial risks: what costs little is tried often."""


@dataclass(frozen=True, slots=True)
class Settled:
    """One arm is in charge; plain decoding is an arm like others."""

    arm: Arm

    @property
    def home(self) -> Arm:
        """The arm that is thought best."""
        return self.arm


@dataclass(frozen=True, slots=True)
class Trial:
    """An arm is in charge that may be better than the home arm."""

    arm: Arm
    home: Arm


@dataclass(frozen=True, slots=True)
class Locked:
    """The clock may not choose: one arm, at fixed prices."""

    arm: Arm

    @property
    def home(self) -> Arm:
        """The same."""
        return self.arm


State = Settled | Trial | Locked
Wait = tuple[Arm, int, int]
"""An arm, the tokens until it may be tried again, and how many it will be the next time."""


@dataclass(frozen=True, slots=True)
class Step:
    """A decision. seconds, saving: of the purse from now on; None where it saves as before.

    waits: what changed of them, the last one of an arm holds. verdict: what became of the stretch that ends.
    goes_on: the same trial for some rounds more.
    """

    state: State
    seconds: float
    saving: float | None = None
    waits: tuple[Wait, ...] = ()
    verdict: str = ""
    goes_on: bool = False


@dataclass(slots=True)
class Question:
    """What one decision rests on, and its scratch paper: a new one for each.

    arms: those that memory allows and that are worth joining. made: tokens so far.
    """

    known: Prospects
    arms: Sequence[Arm]
    made: int
    stretch: Stretch
    seconds: float
    waits: list[Wait] = field(default_factory=list)

    def rate(self, arm: Arm) -> float:
        """Tokens a second."""
        return self.known.rate(arm)

    def best(self) -> Arm:
        """The fastest; in place of plain decoding a drafter that may listen."""
        fastest = self.fastest()
        if not fastest.plain:
            return fastest
        ready = (arm for arm in self.arms if self.listens(arm) and self.wait_of(arm) <= 0)
        return max(ready, key=self.rate, default=fastest)

    def fastest(self) -> Arm:
        """Of those that are known."""
        return max((arm for arm in self.arms if arm.weight or arm.plain), key=self.rate)

    def listens(self, arm: Arm) -> bool:
        """Whether an arm costs so little more than plain decoding that it may wait for what it can draft."""
        if arm.models or arm.plain or not arm.weight:
            return False
        return self.rate(arm) * (_LISTENING + _UNSURE / arm.weight) > 1 / self.known.plain_seconds()

    def lost(self, other: Arm) -> float:
        """Seconds that this stretch cost more than another arm would have taken for its tokens."""
        return self.stretch.seconds - self.stretch.tokens / self.rate(other)

    def wait_of(self, arm: Arm) -> int:
        """As this decision has changed it so far."""
        return next((wait for changed, wait, _ in reversed(self.waits) if changed is arm), arm.wait)


def decide(asked: Question, state: State) -> Step:
    """After the rounds of a stretch: keep an arm, leave it, go on, or try another."""
    if isinstance(state, Trial):
        return _judge(asked, state)
    now, home, verdict = state.arm, state.arm, ""
    fastest = asked.fastest()
    if not fastest.plain:
        if asked.rate(fastest) > _BETTER * asked.rate(now):
            asked.waits.append((fastest, 0, fastest.patience))
    elif now.plain:
        home = asked.best()
    elif asked.rate(fastest) > _PLAINLY * asked.rate(now) and not asked.listens(now):
        verdict, home = "off", asked.best()
        asked.waits += [(fastest, 0, fastest.patience), (now, now.patience, now.patience)]
    return go_on(asked, home, verdict)


def _judge(asked: Question, trial: Trial) -> Step:
    """A trial has had its rounds: keep the arm, go on while that costs next to nothing, or back to the home arm."""
    now, home = trial.arm, trial.home
    lost = asked.lost(home)
    doubt = 0.0 if now.plain else (_DOUBT if home.plain else _RIVAL) / now.weight
    if asked.rate(now) > (_BETTER + doubt) * asked.rate(home) or (home.plain and asked.listens(now)):
        verdict = "kept"
        asked.waits.append((now, now.wait, PLAIN_PATIENCE if now.plain else PATIENCE))
        home = now
    elif _promises(asked, now, home, lost):
        return Step(trial, asked.seconds, goes_on=True)
    else:
        verdict = f"off, next try in {now.patience}"
        risked = asked.known.risk(now, home) * asked.rate(home)
        patience = max(min(2 * now.patience, int(_MOST_PATIENCE * risked)), 2 * PATIENCE)
        asked.waits.append((now, now.patience, patience))
    asked.seconds -= max(lost, 0.0)
    return go_on(asked, home, verdict)


def _promises(asked: Question, now: Arm, home: Arm, lost: float) -> bool:
    """Whether a trial that is not decided seems to win, and has cost next to nothing."""
    if now.plain or asked.stretch.rounds >= _LONGEST or asked.rate(now) <= asked.rate(home):
        return False
    return lost <= min(_CHEAP * asked.known.plain_seconds(), asked.seconds)


def go_on(asked: Question, home: Arm, verdict: str = "") -> Step:
    """With the most hopeful trial that is due, once it can be paid; else with the home arm."""
    known, need = asked.known, _BETTER * asked.rate(home)
    saving = 0.0
    for arm in _due(asked, home):
        if not arm.plain and not arm.weight and asked.rate(arm) < need:
            asked.waits.append((arm, PLAIN_PATIENCE, arm.patience))
            continue
        risk, owed = known.risk(arm, home), known.owed(arm)
        if owed > 0 and asked.rate(arm) > need and known.saved(arm, asked.made) >= owed:
            # It would have won by now what reading the text costs: so it may cost that (ski rental).
            asked.seconds = max(asked.seconds, 0.0) + owed
        trifle = 0.0 if arm.models or arm.plain else _TRIFLE * known.plain_seconds()
        if risk <= max(asked.seconds, trifle):
            tries = verdict or f"tries {arm.name}"
            return Step(Trial(arm, home), asked.seconds, saving, tuple(asked.waits), tries)
        if risk <= SAVED * known.plain_seconds():
            break
        saving = min(saving or risk, risk)
    return Step(Settled(home), asked.seconds, saving, tuple(asked.waits), verdict)


def _due(asked: Question, home: Arm) -> list[Arm]:
    """Arms that may be tried again, the most hopeful first."""
    due = [arm for arm in asked.arms if arm is not home and asked.wait_of(arm) <= 0]
    return sorted(due, key=asked.known.luck, reverse=True)


def rounds_of(state: State, made: int, soonest: int = _SETTLED) -> int:
    """Rounds until the next decision. soonest: tokens until an arm may be tried again."""
    arm, trying = state.arm, isinstance(state, Trial)
    if arm.plain:
        return STAY if trying else 2 * STAY if made < FIRST_TOKENS else min(max(soonest, 4 * STAY), _SETTLED)
    if trying:
        return _GLANCE if arm.weight and not arm.models else TRIAL
    return STAY if arm.weight < _FAMILIAR else 3 * STAY
