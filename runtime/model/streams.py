"""A streaming draft model (arXiv 2402.11131): one pass reads what is new of a text and drafts several tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from paceline.runtime.contracts import Logits
from paceline.runtime.model.head import Features, Floats, Ids, Shape
from paceline.runtime.model.model import Model
from paceline.runtime.model.passes import Mask, lower_triangle
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
    def behind(self) -> int:
        """Rows of a pass behind a text, at most."""
        return len(self._streams)

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
        seen = self.readable(tokens)
        if not seen:
            return False
        self._unread = self._left(seen)
        return True

    def readable(self, tokens: Sequence[int]) -> Sequence[int]:
        """A text, or its end where the context has no room for both; nothing where a draft has no room at all."""
        room = self.model.context - self.behind
        if room < 1:
            return ()
        return tokens if len(tokens) <= room else window(len(tokens), room).of(tokens)

    def _left(self, seen: Sequence[int]) -> Sequence[int]:
        """What of it was not read, as far as one pass takes it."""
        model = self.model
        unread = model.unread(seen)
        if len(unread) + self.behind > model.chunk:
            model.prefill(unread[:-1])
            unread = unread[-1:]
        return unread

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

    def rows(self, seen: Sequence[int], levels: int) -> Logits:
        """What a pass says behind a text that it can read, without noise, float32[`reach(levels)`, V]."""
        return self.model.ahead(self._left(seen), self._streams[: self.reach(levels) - 1])

    def grow(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        mask: Mask,
        held: int,
        ends: Sequence[int],
        levels: int,
    ) -> tuple[Logits, list[Logits]]:
        """Nodes of a draft tree as `Model.grow` takes them, and streams behind some of them, whose rows are not kept.

        ends: places of these among the nodes. Returns what is said behind every node, float32[T, V], and behind each
        end by `reach(levels)` levels, float32[D, V].
        """
        more = self._streams[: self.reach(levels) - 1]
        nodes, each = len(tokens), len(more)
        whole = nodes + each * len(ends)
        seen, places = np.zeros((whole, held + whole), np.bool_), list(positions)
        seen[:nodes, : held + nodes] = mask
        begins = range(nodes, whole, each) if each else [nodes] * len(ends)
        for end, begin in zip(ends, begins, strict=True):
            rows = slice(begin, begin + each)
            seen[rows, : held + nodes] = mask[end]
            seen[rows, held + begin : held + begin + each] = lower_triangle(each)
            places += range(positions[end] + 1, positions[end] + 1 + each)
        said = self.model.grow([*tokens, *more * len(ends)], places, seen, held, kept=nodes)
        behind = [said[[end, *range(at, at + each)]] for end, at in zip(ends, begins, strict=True)]
        return said[:nodes], behind

    def probe(self, rows: int, past: int) -> None:
        """What drafting so many levels takes, for its time alone, after `past` others."""
        self.model.probe(self.reach(rows), past)

    def forget(self) -> None:
        """Empty its cache."""
        self.model.rewind(0)

    def close(self) -> None:
        """Give all memory but its model's back; it cannot run again."""
        self.noise, self.kept, self._scores = (b[:0].copy() for b in (self.noise, self.kept, self._scores))
