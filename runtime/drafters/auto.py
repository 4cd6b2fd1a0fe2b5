"""Several drafters of which one at a time is in charge: the body of `auto`, whose head is the controller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paceline.runtime.contracts import Drafter, DraftLimit, Outcome
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree


class Auto:
    """Passes every call on to the drafter in charge; one that is not is neither run nor fed.

    Drafters bring themselves up to the text when they are asked again. `switch` names the one in charge.
    """

    name = "auto"

    def __init__(self, arms: Mapping[str, Drafter]) -> None:
        if not arms:
            raise ValueError("nothing to choose from: name one drafter or more")
        self._arms = dict(arms)
        self.needs: frozenset[str] = frozenset().union(*(d.needs for d in self._arms.values()))
        self._now = next(iter(self._arms.values()))

    def switch(self, name: str) -> None:
        """Put another drafter in charge."""
        self._now = self._arms[name]

    def footprint(self, limit: DraftLimit) -> int:
        """All of them together; what two of them share counts twice."""
        return sum(drafter.footprint(limit) for drafter in self._arms.values())

    def begin(self, request: Request) -> None:
        """Passed on to all."""
        for drafter in self._arms.values():
            drafter.begin(request)

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """What the drafter in charge proposes."""
        return self._now.propose(tokens, limit)

    def observe(self, outcome: Outcome) -> None:
        """Only the drafter in charge is fed."""
        self._now.observe(outcome)

    def reset(self) -> None:
        """Passed on to all."""
        for drafter in self._arms.values():
            drafter.reset()
