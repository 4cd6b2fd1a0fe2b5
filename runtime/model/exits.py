"""Leaving the target early: its first layers draft over its own weights and cache, and a part says tokens behind them.

Kangaroo (2404.18911) leaves after one layer, through a trained block of attention; DEL (2504.05598) after one of
several, through the target's own norm and LM head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from paceline.runtime.contracts import Array, Logits, common_prefix
from paceline.runtime.model.head import Features, Ids
from paceline.runtime.model.model import Model
from paceline.runtime.model.skipping import Skipping
from paceline.runtime.model.window import window


class Exits:
    """Continues the text that a target holds by a chain, a row a pass, through a part of kind `exit`.

    early: by layer, the target up to there. reader: runs the part's own graph over hidden states. ids: what the columns
    of its logits stand for, ids of the target. Where the part has a cache of its own, that follows the text by the
    hidden states that the target gave, and the rows of a draft are forgotten.
    """

    odds = 0.0
    """It predicts nothing of acceptance."""

    def __init__(self, reader: Model, ids: Ids, early: Mapping[int, Skipping]) -> None:
        self.reader, self.ids, self.early = reader, ids, dict(sorted(early.items()))
        self.part = next(iter(self.early.values())).part
        """The target up to a layer: it has the target's vocabulary."""
        self.costs = reader.part.costs
        """By layer, what a draft pass costs, in passes of the target."""
        self.layer = next(iter(self.early))
        """After which it leaves; may be changed before a text is read."""
        self.depths = (1,)
        self._row: Logits = np.full(self.part.vocab, -np.inf, np.float32)
        self._text: list[int] = []
        self._from, self._rows = (-1, 0), 0

    @property
    def attends(self) -> bool:
        """Whether its part has a cache of its own."""
        return self.reader.part.layers > 0

    @property
    def context(self) -> int:
        """Tokens of the text, and of the draft behind it, that it can hold."""
        own = next(iter(self.early.values())).context
        return min(own, self._from[1] + self.reader.context) if self.attends else own

    @property
    def bytes(self) -> int:
        """Bytes of its own cache and of the buffers that a pass writes to."""
        return self.reader.bytes + self.early_bytes

    @property
    def early_bytes(self) -> int:
        """Bytes of the buffers of the target's first layers."""
        return self._row.nbytes + sum(model.bytes for model in self.early.values())

    def catch_up(self, tokens: Sequence[int], features: Features) -> bool:
        """Bring its own cache up to a text, whose last token is the root; False where nothing is held of its last row.

        Rows before those that are held, or that the cache has no room for, are left out.
        """
        model, rows = self.reader, len(tokens) - 1
        first = max(
            window(rows + 2, model.context, 0).start, features.held.start
        )  # the root, and a token more
        if not (features.held.start <= first <= rows <= features.held.stop):
            return False
        same, known = 0, common_prefix(self._text, tokens[:rows])
        if self._from == (features.epoch, first):
            same = min(max(known - first, 0), self._rows, model.length)
        model.rewind(same)
        self._from, self._text[known:] = (features.epoch, first), tokens[known:rows]
        [tap] = model.part.reads
        if first + same < rows:
            model.prefill(tokens[first + same : rows], features.rows(tap, first + same, rows))
        self._rows = model.length
        return True

    def readable(self, tokens: Sequence[int], vocab: int) -> Sequence[int]:
        """The text as it is: the target has read it."""
        return tokens

    def read(self, tokens: Sequence[int]) -> Logits:
        """Logits after the last token of a text, float32[V], whose other tokens the target holds.

        Raises RuntimeError where it holds another text.
        """
        self.early[self.layer].begin(tokens)
        if self.attends:
            self.reader.rewind(self._rows)
        return self.extend(tokens[-1:])

    def extend(self, tokens: Sequence[int]) -> Logits:
        """Logits after one more token, float32[V]; the next call overwrites them."""
        early = self.early[self.layer]
        if not self.attends:
            return early.extend(tokens)
        [token] = tokens
        self._row[self.ids] = self.reader.extend(tokens, early.state(token))
        return self._row

    def said(self, layer: int, states: Array) -> Ids:
        """The best token by the hidden states behind a layer, float32[T, hidden], each for itself: int64[T]."""
        count = len(states)
        logits = self.reader.grow([0] * count, range(count), np.eye(count, dtype=np.bool_), 0, states)
        found: Ids = self.ids[logits.argmax(axis=1)]
        return found

    def rewind(self, length: int) -> None:
        """Forget its own cache."""
        self.reader.rewind(0)

    def probe(self, rows: int, past: int) -> None:
        """A draft pass for its time alone, after `past` cache rows whatever they hold."""
        middle = list(self.early)[len(self.early) // 2]
        self.early[middle].probe(1, past)
        if self.attends:
            self.reader.probe(1, min(past, self.reader.context - 1))

    def close(self) -> None:
        """Give its buffers back but for its reader's; it cannot run again."""
        for model in self.early.values():
            model.close()
