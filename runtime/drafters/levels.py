"""Rows of a draft model along a chain: one pass each, or several from one call that guesses how the chain goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from paceline.runtime.contracts import Logits
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
    """Gives the logits of each level, float32[V], once the token before it is chosen."""

    def first(self, seen: Sequence[int], history: Sequence[int], levels: int) -> Logits:
        """After a text. seen: what the model reads of the history. levels: how many may be asked for."""

    def ready(self, token: int) -> bool:
        """Whether the logits after this token, of the level that was given last, are there already."""

    def after(self, token: int, history: Sequence[int], levels: int) -> Logits:
        """After this token of the level that was given last; the history ends with it."""


class Passes:
    """A pass a level."""

    def __init__(self, model: Continuing) -> None:
        self._model = model

    def first(self, seen: Sequence[int], history: Sequence[int], levels: int) -> Logits:
        """Read the text."""
        return self._model.read(seen)

    def ready(self, token: int) -> bool:
        """Never."""
        return False

    def after(self, token: int, history: Sequence[int], levels: int) -> Logits:
        """Read the token."""
        return self._model.extend([token])


class Leaps:
    """A call for several levels: its graph goes on with the best token of each, by logits and noise.

    Whoever chooses another token than that is given a new call from there, so that what is chosen never depends on it.
    """

    def __init__(self, unrolled: Unrolled, noise: LevelNoise) -> None:
        self._unrolled, self._noise = unrolled, noise
        self._guessed: list[int] = []
        self._rows: Logits | None = None
        self._at = self._held = 0

    def first(self, seen: Sequence[int], history: Sequence[int], levels: int) -> Logits:
        """Read the text, and draft."""
        return self._call(self._unrolled.model.unread(seen), history, levels)

    def ready(self, token: int) -> bool:
        """Whether the call went on with this token."""
        return self._at + 1 < len(self._guessed) and self._guessed[self._at] == token

    def after(self, token: int, history: Sequence[int], levels: int) -> Logits:
        """What the call found, or a new call."""
        if self._rows is not None and self.ready(token):
            self._at += 1
            row: Logits = self._rows[self._at]
            return row
        self._unrolled.model.rewind(self._held + self._at)
        return self._call([token], history, levels)

    def _call(self, unread: Sequence[int], history: Sequence[int], levels: int) -> Logits:
        model, depth = self._unrolled.model, self._unrolled.reach(levels)
        self._at, self._held = 0, model.length + len(unread)
        if not depth:
            self._guessed = []
            return model.extend(unread)
        if len(unread) > MOST_READ:
            model.prefill(unread[:-1])
            unread = unread[-1:]
        self._noise.write(history, depth)
        tokens, self._rows = self._unrolled.draft(unread, depth)
        self._guessed = tokens.tolist()
        row: Logits = self._rows[0]
        return row
