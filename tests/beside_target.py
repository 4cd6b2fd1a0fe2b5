"""A drafter that runs over a target's weights and cache, where another one decides."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.runtime.contracts import Drafter, DraftLimit, Outcome, Scored
from paceline.runtime.model.model import Model
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree


class BesideTarget:
    """The drafter `inner`, whose own target reads along, as a loop would have it."""

    needs: frozenset[str] = frozenset()

    def __init__(self, target: Model, inner: Drafter) -> None:
        self._target, self._inner, self.name = target, inner, inner.name

    def footprint(self, limit: DraftLimit) -> int:
        return self._inner.footprint(limit)

    def begin(self, request: Request) -> None:
        self._inner.begin(request)

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        held = self._target.keep_common(tokens[:-1])
        self._target.prefill(tokens[held:-1])
        return self._inner.propose(tokens, limit)

    def observe(self, outcome: Outcome) -> None:
        if len(outcome.scored.logits) and self._target.part.taps:
            seen = Scored(outcome.scored.logits, self._target.score(outcome.tree).extras)
            outcome = outcome._replace(scored=seen)
        self._inner.observe(outcome)

    def reset(self) -> None:
        self._inner.reset()
