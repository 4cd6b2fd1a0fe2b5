"""How much to draft, and whether to draft at all: what does not pay is switched off."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paceline.runtime.contracts import Drafter, DraftLimit, Outcome, Request
from paceline.runtime.tree import TokenTree


class FixedLimit:
    """The same limit every round, cut to the room that is left."""

    def __init__(self, nodes: int, depth: int) -> None:
        self._limit = DraftLimit(nodes, depth)

    def limit(self, room: int) -> DraftLimit:
        """At most `room` levels."""
        if room >= self._limit.depth:
            return self._limit
        return DraftLimit(self._limit.nodes if room > 0 else 0, max(room, 0))

    def learn(self, outcome: Outcome) -> None:
        """Nothing."""


@dataclass(slots=True)
class _Arm:
    """One way to go on, and what its rounds cost: decayed sums of seconds and tokens."""

    drafter: Drafter
    depth: int
    seconds: float = 0.0
    tokens: float = 0.0
    wait: int = 0
    """Rounds until it may be tried again."""
    patience: int = 24

    def cost(self) -> float:
        """Seconds a token."""
        return self.seconds / self.tokens


class PayingDrafter:
    """Goes on with the drafter that yields most tokens a second; plain decoding is always among them.

    Each arm is tried for a few rounds, then the cheapest is kept and the others are tried again at intervals
    that double while they lose, so what is tried in vain costs little. A drafter that is not chosen is
    neither run nor fed. Which arm runs depends on the clock, so it switches only where the tokens do not
    depend on the drafter (greedy, coupled); under another rule it stays with its first arm.
    """

    name = "auto"
    _TRIAL = 6
    _FIRST_TRIAL = 12
    _WARM_UP = 5
    """Rounds of a first trial that are not priced: every new width of a pass costs extra once."""
    _DECAY = 0.97
    _PATIENCE = 24
    _MOST_PATIENCE = 768

    def __init__(
        self,
        plain: Drafter,
        others: Sequence[tuple[Drafter, int]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.needs: frozenset[str] = frozenset().union(*(d.needs for d, _ in others))
        self._arms = [*(_Arm(d, depth) for d, depth in others), _Arm(plain, 0)]
        self._clock = clock
        self._current = self._arms[0]
        self._left = self._FIRST_TRIAL
        self._unpriced = self._WARM_UP
        self._locked = False
        self._begun = 0.0

    @property
    def chosen(self) -> str:
        """The drafter that is in use."""
        return self._current.drafter.name

    def footprint(self, limit: DraftLimit) -> int:
        """All of them together."""
        return sum(arm.drafter.footprint(limit) for arm in self._arms)

    def begin(self, request: Request) -> None:
        """Passed on to all; what was measured stays."""
        self._locked = request.accept != "coupled" and request.sampling.temperature > 0
        if self._locked:
            self._current = self._arms[0]
        for arm in self._arms:
            arm.drafter.begin(request)

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """What the chosen drafter proposes."""
        self._begun = self._clock()
        arm = self._current
        return arm.drafter.propose(
            tokens, DraftLimit(limit.nodes, min(limit.depth, arm.depth), limit.deadline)
        )

    def observe(self, outcome: Outcome) -> None:
        """The prompt goes to all; after that only the chosen drafter is fed, and its round is priced."""
        if not len(outcome.scored.logits):
            for arm in self._arms:
                arm.drafter.observe(outcome)
            return
        arm = self._current
        arm.drafter.observe(outcome)
        if self._locked:
            return
        # The first round after a switch pays for catching up with the text; a longer stay would not.
        if not self._unpriced:
            arm.seconds = arm.seconds * self._DECAY + self._clock() - self._begun
            arm.tokens = arm.tokens * self._DECAY + len(outcome.verdict.path)
        self._unpriced = max(self._unpriced - 1, 0)
        self._left -= 1
        if self._left <= 0:
            self._choose()

    def reset(self) -> None:
        """Passed on to all."""
        for arm in self._arms:
            arm.drafter.reset()

    def _choose(self) -> None:
        """Next: an arm not tried yet, else one whose wait is over, else the cheapest."""
        before = self._current
        untried = next((a for a in self._arms if not a.tokens), None)
        if untried is not None:
            self._current = untried
        else:
            best = min(self._arms, key=_Arm.cost)
            best.patience = self._PATIENCE
            for arm in self._arms:
                if arm is before and arm is not best:
                    arm.wait, arm.patience = arm.patience, min(2 * arm.patience, self._MOST_PATIENCE)
                else:
                    arm.wait -= self._TRIAL
            due = (a for a in self._arms if a.wait <= 0 and a is not best and a is not before)
            self._current = next(due, best)
        known = self._current.tokens > 0
        self._left = self._TRIAL if known else self._FIRST_TRIAL
        self._unpriced = int(self._current is not before) if known else self._WARM_UP
