"""Several levels of a draft model's chain from one call, which guesses how the chain goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from paceline.runtime.contracts import Logits
from paceline.runtime.drafters.draw import Children, GreedyDraw
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

    @property
    def odds(self) -> float:
        """What was predicted with the last logits: added to the logarithm of the odds that a token is accepted."""

    def readable(self, tokens: Sequence[int], vocab: int) -> Sequence[int]:
        """A text as it can read it. vocab: ids that the text may hold."""

    def read(self, tokens: Sequence[int]) -> Logits:
        """Logits after a text, float32[V]."""

    def extend(self, tokens: Sequence[int]) -> Logits:
        """Logits after more tokens, float32[V]."""

    def rewind(self, length: int) -> None:
        """Forget all rows from `length` on."""


class Leaps:
    """A call for several levels: its graph goes on with the best token of each, by logits and noise. One child a level.

    Whoever chooses another token than that is given a new call from there, so that what is chosen never depends on it.
    """

    def __init__(self, unrolled: Unrolled, draw: GreedyDraw, noise: LevelNoise) -> None:
        self._unrolled, self._draw, self._noise = unrolled, draw, noise
        self._guessed: list[int] = []
        self._rows: Logits = np.empty((0, 0), np.float32)
        self._best: list[Children] = []
        self._odds: list[float] = []
        self._at = self._held = 0

    def first(self, seen: Sequence[int], history: Sequence[int], levels: int) -> Children:
        """Read the text, and draft. seen: what the model reads of the history; levels: how many may be asked for."""
        return self._call(self._unrolled.model.unread(seen), history, levels)

    def ready(self, token: int) -> bool:
        """Whether the call went on with this token, so that the level after it was run already."""
        return self._at + 1 < len(self._guessed) and self._guessed[self._at] == token

    def after(self, token: int, history: Sequence[int], levels: int) -> Children:
        """What the call found behind the token given last, or a new call; the history ends with that token."""
        if self.ready(token):
            self._at += 1
            return self._chosen(history)
        self._unrolled.model.rewind(self._held + self._at)
        return self._call([token], history, levels)

    @property
    def odds(self) -> float:
        """What was predicted for the child given last, see `Continuing.odds`."""
        return self._odds[self._at] if self._guessed else self._unrolled.model.odds

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
        self._odds = self._unrolled.odds
        return self._chosen(history)

    def _chosen(self, history: Sequence[int]) -> Children:
        if self._best:
            return self._best[self._at]
        return self._draw.children(self._rows[self._at], history, 1)
