"""A drafter whose model's device may be lost in the middle of an answer: that costs speed, not the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from paceline.runtime.contracts import Drafter, DraftLimit, Outcome
from paceline.runtime.model.graph import RunError
from paceline.runtime.model.ort import DeviceError
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree

T = TypeVar("T")


class Lasting:
    """Drafts as another one does until a run of its model fails, and nothing from then on.

    lost: what failed, by its part, and how. A device that failed is not asked again: what it would do next nobody
    knows.
    """

    def __init__(self, drafter: Drafter, part: str, lost: dict[str, str]) -> None:
        self.name, self.needs = drafter.name, drafter.needs
        self._drafter, self._part, self._lost = drafter, part, lost

    def footprint(self, limit: DraftLimit) -> int:
        """The other one's: its buffers stay."""
        return self._drafter.footprint(limit)

    def begin(self, request: Request) -> None:
        """Passed on."""
        self._try(lambda: self._drafter.begin(request))

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """What the other one proposes, or the last token alone."""
        return self._try(lambda: self._drafter.propose(tokens, limit)) or TokenTree.root(tokens[-1])

    def observe(self, outcome: Outcome) -> None:
        """Passed on."""
        self._try(lambda: self._drafter.observe(outcome))

    def reset(self) -> None:
        """Passed on."""
        self._drafter.reset()

    def _try(self, call: Callable[[], T]) -> T | None:
        if self._part in self._lost:
            return None
        try:
            return call()
        except (RunError, DeviceError) as error:  # some graphs are opened when they are first needed
            self._lost[self._part] = str(error)
            return None
