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
    rounds: int = 0
    wait: int = 0
    """Rounds until it may be tried again."""
    patience: int = 24

    def cost(self) -> float:
        """Seconds a token."""
        return self.seconds / self.tokens if self.tokens else 0.0


class PayingDrafter:
    """Goes on with the drafter that yields most tokens a second; plain decoding is always among them.

    Each arm is tried for a few rounds, then the cheapest is kept and the others are tried again at intervals
    that double while they lose, so what is tried in vain costs little. A drafter that is not chosen is
    neither run nor fed. Which arm runs depends on the clock: the tokens must not, so this fits rules whose
    output does not depend on the drafter (greedy and coupled) or keeps its law (all lossless ones).
    """

    _TRIAL = 6
    _DECAY = 0.97

    def __init__(
        self, plain: Drafter, others: Sequence[tuple[Drafter, int]], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.name = "auto"
        self.needs: frozenset[str] = frozenset().union(*(d.needs for d, _ in others))
        self._arms = [*(_Arm(d, depth) for d, depth in others), _Arm(plain, 0)]
        self._clock = clock
        self._current = self._arms[0]
        self._left = self._TRIAL
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
        for arm in self._arms:
            arm.drafter.begin(request)

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """What the chosen drafter proposes."""
        self._begun = self._clock()
        arm = self._current
        return arm.drafter.propose(tokens, DraftLimit(limit.nodes, min(limit.depth, arm.depth), limit.deadline))

    def observe(self, outcome: Outcome) -> None:
        """The prompt goes to all; after that only the chosen drafter is fed, and its round is priced."""
        if not len(outcome.scored.logits):
            for arm in self._arms:
                arm.drafter.observe(outcome)
            return
        arm = self._current
        arm.drafter.observe(outcome)
        self._price(arm, self._clock() - self._begun, len(outcome.verdict.path))
        self._left -= 1
        if self._left <= 0:
            self._choose()

    def reset(self) -> None:
        """Passed on to all."""
        for arm in self._arms:
            arm.drafter.reset()

    def _price(self, arm: _Arm, seconds: float, tokens: int) -> None:
        # The first round of a trial pays for catching up with the text; a longer stay would not.
        if self._left == self._TRIAL and arm.rounds:
            return
        if arm.rounds == 0:
            arm.rounds = 1
            return
        arm.seconds = arm.seconds * self._DECAY + seconds
        arm.tokens = arm.tokens * self._DECAY + tokens
        arm.rounds += 1

    def _choose(self) -> None:
        untried = next((a for a in self._arms if not a.tokens), None)
        if untried is not None:
            self._current, self._left = untried, self._TRIAL
            return
        best = min(self._arms, key=_Arm.cost)
        for arm in self._arms:
            if arm is best:
                arm.patience = 24
            elif arm is self._current:
                arm.patience = min(arm.patience * 2, 768)
                arm.wait = arm.patience
            else:
                arm.wait -= self._TRIAL
        due = next((a for a in self._arms if a is not best and a.wait <= 0 and a is not self._current), None)
        self._current, self._left = due or best, self._TRIAL
