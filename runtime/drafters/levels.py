"""Levels of a chain of a draft model: a pass each, or several from one call that guesses how the chain goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from paceline.runtime.contracts import Logits
from paceline.runtime.drafters.draw import Children, Draw, GreedyDraw
from paceline.runtime.drafters.level_noise import LevelNoise
from paceline.runtime.manifest import Part
from paceline.runtime.model.unrolled import MOST_READ, Unrolled


class Continuing(Protocol):
    """What a chain is drafted with: a draft model, or the target with blocks left out."""

    part: Part

    @property
    def context(self) -> int:
        """Tokens that it can hold at most, those of a draft included."""

    @property
    def bytes(self) -> int:
        """Bytes of all that it has of its own."""

    def readable(self, tokens: Sequence[int], vocab: int) -> Sequence[int]:
        """A text as it can read it. vocab: ids that the text may hold."""

    def read(self, tokens: Sequence[int]) -> Logits:
        """Logits after a text, float32[V]."""

    def extend(self, tokens: Sequence[int]) -> Logits:
        """Logits after more tokens, float32[V]."""

    def rewind(self, length: int) -> None:
        """Forget all rows from `length` on."""


class Levels(Protocol):
    """Chooses the token of each level, one child at most, once that before it is known."""

    def first(self, seen: Sequence[int], history: Sequence[int], levels: int) -> Children:
        """After a text. seen: what the model reads of the history. levels: how many may be asked for."""

    def ready(self, token: int) -> bool:
        """Whether the level after this token, the one that was given last, was run already."""

    def after(self, token: int, history: Sequence[int], levels: int) -> Children:
        """After this token of the level that was given last; the history ends with it."""


class Passes:
    """A pass a level."""

    def __init__(self, model: Continuing, draw: Draw) -> None:
        self._model, self._draw = model, draw

    def first(self, seen: Sequence[int], history: Sequence[int], levels: int) -> Children:
        """Read the text."""
        return self._draw.children(self._model.read(seen), history, 1)

    def ready(self, token: int) -> bool:
        """Never."""
        return False

    def after(self, token: int, history: Sequence[int], levels: int) -> Children:
        """Read the token."""
        return self._draw.children(self._model.extend([token]), history, 1)


class Leaps:
    """A call for several levels: its graph goes on with the best token of each, by logits and noise.

    Whoever chooses another token than that is given a new call from there, so that what is chosen never depends on it.
    """

    def __init__(self, unrolled: Unrolled, draw: GreedyDraw, noise: LevelNoise) -> None:
        self._unrolled, self._draw, self._noise = unrolled, draw, noise
        self._guessed: list[int] = []
        self._rows: Logits = np.empty((0, 0), np.float32)
        self._best: list[Children] = []
        self._at = self._held = 0

    def first(self, seen: Sequence[int], history: Sequence[int], levels: int) -> Children:
        """Read the text, and draft."""
        return self._call(self._unrolled.model.unread(seen), history, levels)

    def ready(self, token: int) -> bool:
        """Whether the call went on with this token."""
        return self._at + 1 < len(self._guessed) and self._guessed[self._at] == token

    def after(self, token: int, history: Sequence[int], levels: int) -> Children:
        """What the call found, or a new call."""
        if self.ready(token):
            self._at += 1
            return self._chosen(history)
        self._unrolled.model.rewind(self._held + self._at)
        return self._call([token], history, levels)

    def _call(self, unread: Sequence[int], history: Sequence[int], levels: int) -> Children:
        model, depth = self._unrolled.model, self._unrolled.reach(levels)
        self._at, self._held = 0, model.length + len(unread)
        if not depth:
            self._guessed = []
            return self._draw.children(model.extend(unread), history, 1)
        if len(unread) > MOST_READ:
            model.prefill(unread[:-1])
            unread = unread[-1:]
        self._noise.write(history, depth)
        tokens, self._rows = self._unrolled.draft(unread, depth)
        self._guessed, self._best = tokens.tolist(), self._draw.best(self._rows)
        return self._chosen(history)

    def _chosen(self, history: Sequence[int]) -> Children:
        if self._best:
            return self._best[self._at]
        return self._draw.children(self._rows[self._at], history, 1)
