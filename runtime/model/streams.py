"""A streaming draft model (arXiv 2402.11131): one pass reads what is new of a text and drafts several tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from paceline.runtime.model.head import Features, Floats, Ids, Shape
from paceline.runtime.model.model import Model
from paceline.runtime.model.window import window


class Streams:
    """Runs a part of kind `streaming decoder`: `read` takes a text, `draft` is the pass over what is new of it.

    Behind the last token the pass has a row for each later level, a stream, which sees the text and the streams before
    it; its keys and values are not kept. What drafts with a `Head` drafts with it, too. vocab: of the target.
    """

    trees: ClassVar[tuple[Shape, ...]] = ()
    worth: ClassVar[dict[Shape, float]] = {}

    def __init__(self, model: Model, vocab: int) -> None:
        part = model.part
        self.model, self.depths = model, tuple(range(1, part.deepest + 1))
        self.ids: Ids = np.arange(min(vocab, part.vocab - part.streams))
        """What the columns of its scores stand for: ids of the target."""
        self._streams = list(range(part.vocab - part.streams, part.vocab))
        shape = part.deepest, len(self.ids)
        self.noise: Floats = np.zeros(shape, np.float32)
        """Added to the logits of each level before its token is chosen; whoever drafts writes into it."""
        self.kept: Floats = np.zeros(shape, np.float32)
        """As much again, for whoever writes the noise."""
        self._scores = np.zeros(shape, np.float32)
        self._unread: Sequence[int] = ()

    @property
    def bytes(self) -> int:
        """Bytes of the buffers of its drafts."""
        return self.noise.nbytes + self.kept.nbytes + self._scores.nbytes

    def open(self) -> None:
        """Make its buffers resident."""
        for buffer in (self.noise, self.kept, self._scores):
            buffer.fill(0)

    def read(self, tokens: Sequence[int], features: Features | None = None) -> bool:
        """Take a text, whose last token is the root, or its end where the context has no room for both it and a draft.

        False where there is no room at all. features: what a head reads; this one reads the tokens alone.
        """
        model, room = self.model, self.model.context - len(self._streams)
        if room < 1:
            return False
        seen = tokens if len(tokens) <= room else window(len(tokens), room).of(tokens)
        unread = model.unread(seen)
        if len(unread) + len(self._streams) > model.chunk:
            model.prefill(unread[:-1])
            unread = unread[-1:]
        self._unread = unread
        return True

    def reach(self, levels: int) -> int:
        """The least depth that has so many levels, or else the largest."""
        return min(max(levels, 1), self.depths[-1])

    def draft(self, levels: int, root: int) -> tuple[Ids, Floats]:
        """Ids of the target int64[D], and scores float32[D, V], of D = `reach(levels)` levels after the text that was
        read last; the next call overwrites the scores.
        """
        depth = self.reach(levels)
        logits, scores = self.model.ahead(self._unread, self._streams[: depth - 1]), self._scores[:depth]
        np.add(logits[:, : len(self.ids)], self.noise[:depth], out=scores)
        return scores.argmax(axis=1), scores

    def probe(self, rows: int, past: int) -> None:
        """What drafting so many levels takes, for its time alone, after `past` others."""
        self.model.probe(self.reach(rows), past)

    def forget(self) -> None:
        """Empty its cache."""
        self.model.rewind(0)

    def close(self) -> None:
        """Give all memory but its model's back; it cannot run again."""
        self.noise, self.kept, self._scores = (b[:0].copy() for b in (self.noise, self.kept, self._scores))
