"""How a draft model that goes on beside the target's pass reads a text, and what it looks at first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from paceline.runtime.contracts import DraftLimit
from paceline.runtime.drafters.draw import Acceptance, Draw
from paceline.runtime.drafters.grid import ROOT, Grid
from paceline.runtime.model.model import Model


class Reading(Protocol):
    """A way to begin."""

    def readable(self, tokens: Sequence[int]) -> Sequence[int]:
        """A text as the model can read it; nothing where it has no room for a draft."""

    def over(self, tokens: list[int], known: Acceptance) -> Grid:
        """An empty grid over a text."""

    def read(self, grid: Grid, seen: Sequence[int], draw: Draw, limit: DraftLimit | None) -> None:
        """Run the model on what is readable of a grid's text. limit: of the proposal, where one comes of it."""

    def together(self, grid: Grid) -> list[int]:
        """Nodes that are to be looked at in one pass, before all others."""


class Nodes:
    """Of a model that says of each node what may follow, one token further on. vocab: ids that a text may hold."""

    def __init__(self, model: Model, vocab: int) -> None:
        self._model, self._vocab = model, vocab

    def readable(self, tokens: Sequence[int]) -> Sequence[int]:
        """See `Reading`."""
        return self._model.readable(tokens, self._vocab)

    def over(self, tokens: list[int], known: Acceptance) -> Grid:
        """See `Reading`."""
        return Grid(self._model, tokens, known)

    def read(self, grid: Grid, seen: Sequence[int], draw: Draw, limit: DraftLimit | None) -> None:
        """See `Reading`."""
        grid.expand(ROOT, self._model.read(seen), draw)

    def together(self, grid: Grid) -> list[int]:
        """None: to draft what is looked at it has looked at all but its ends."""
        return []
