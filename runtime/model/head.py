"""A draft head: it reads hidden states of the target, and drafts several levels in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from paceline.runtime.contracts import Array, common_prefix
from paceline.runtime.model.contract import draft_contract
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.passes import Bound
from paceline.runtime.model.window import window

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Features(Protocol):
    """Hidden states of the target, a row a committed token."""

    epoch: int
    """Changes when all rows were forgotten: those of the same tokens may be others then."""

    @property
    def held(self) -> range:
        """The rows that are known."""

    def rows(self, tap: str, start: int, stop: int) -> Array:
        """float32[stop - start, hidden]. Raises ValueError for what is not held."""


class Head:
    """Runs a part of kind `head`: `read` brings its state up to a text, `draft` goes on from there.

    What it reads are pairs: the hidden states of a row of the target, and the token after it. Where it attends, the
    pairs' rows stand in the cache of `model`. ids: what the columns of its scores stand for, ids of the target. opened:
    its graph that drafts so many levels. Raises BundleError for a graph that is not what the manifest says.
    """

    def __init__(self, model: Model, ids: Ids, opened: Callable[[int], Graph]) -> None:
        part = model.part
        self.model, self.ids, self._opened = model, ids, opened
        self.depths = tuple(sorted(part.drafts))
        """Levels that there are graphs for."""
        deepest, columns = self.depths[-1], part.vocab
        self.noise: Floats = np.zeros((deepest, columns), np.float32)
        """Added to the logits of each level before its token is chosen; whoever drafts writes into it."""
        self.kept: Floats = np.zeros((deepest, columns), np.float32)
        """As much again, for whoever writes the noise."""
        self._scores = np.zeros((deepest, columns), np.float32)
        self._tokens = np.zeros(deepest, np.int64)
        self._state = np.zeros((1, part.hidden), np.float32)
        self._token, self._past = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._bound: dict[int, Bound] = {}
        self._text: list[int] = []
        self._from, self._read = (-1, 0), (-1, -1)

    @property
    def context(self) -> int:
        """Pairs that it reads at most."""
        return self.model.context

    @property
    def bytes(self) -> int:
        """Bytes of the buffers of its drafts."""
        return self.noise.nbytes + self.kept.nbytes + self._scores.nbytes

    def open(self) -> None:
        """Open every graph, and make its buffers resident."""
        for buffer in (self.noise, self.kept, self._scores):
            buffer.fill(0)
        for levels in self.depths:
            self._draft(levels)

    def read(self, tokens: Sequence[int], features: Features) -> bool:
        """Bring the state up to a text, whose last token is the root; False where nothing is held of its last pair.

        Pairs before those that are held, or that its cache has no room for, are left out.
        """
        model, part, pairs = self.model, self.model.part, len(tokens) - 1
        first = max(pairs - 1, 0)
        if part.layers:
            first = max(window(pairs, model.context, 0).start, features.held.start)
        if not (features.held.start <= first < pairs <= features.held.stop):
            return False
        same, known = 0, common_prefix(self._text, tokens)
        if self._from == (features.epoch, first):
            same = min(max(known - 1 - first, 0), model.length)
        if same == pairs - first == model.length and self._read == (model.passes_run, same):
            return True
        model.rewind(min(same, pairs - first - 1))  # of the last pair the state is wanted
        self._from, self._text[known:] = (features.epoch, first), tokens[known:]
        while (at := first + model.length) < pairs:
            end = min(at + model.chunk, pairs)
            fed = np.concatenate([features.rows(tap, at, end) for tap in part.reads], axis=1)
            if end == pairs:
                self._state[0] = model.extend(tokens[at + 1 : end + 1], fed)
            else:
                model.prefill(tokens[at + 1 : end + 1], fed)
        self._read = model.passes_run, model.length
        return True

    def reach(self, levels: int) -> int:
        """The least depth that there is a graph for and that has so many levels, or else the largest."""
        return next((depth for depth in self.depths if depth >= levels), self.depths[-1])

    def draft(self, levels: int, root: int) -> tuple[Ids, Floats]:
        """Ids of the target int64[D], and scores float32[D, V], of D = `reach(levels)` levels after a root.

        The next call overwrites both.
        """
        depth = self.reach(levels)
        self._token[0], self._past[0] = root, self.model.length
        self._draft(depth).run()
        return self._tokens[:depth], self._scores[:depth]

    def probe(self, rows: int, past: int) -> None:
        """What drafting so many levels takes, for its time alone: one pair is read, after `past` others."""
        self.model.probe(1, past if self.model.part.layers else 0)
        self._past[0] = past
        self._draft(self.reach(rows)).run()

    def forget(self) -> None:
        """Empty its cache."""
        self.model.rewind(0)

    def close(self) -> None:
        """Give all memory but the graphs' and its model's back; it cannot run again."""
        self._bound.clear()
        self.noise, self.kept, self._scores = (b[:0].copy() for b in (self.noise, self.kept, self._scores))

    def _draft(self, depth: int) -> Bound:
        if depth not in self._bound:
            model, graph = self.model, self._opened(depth)
            inputs, outputs = draft_contract(model.part, model.cache.form, depth)
            graph.check(inputs, outputs)
            own = {
                "state": self._state,
                "token": self._token,
                "noise": self.noise[:depth],
                "past_len": self._past,
            }
            given: dict[str, Any] = {**own, **model.cache.inputs(), **model.adapters}
            made: dict[str, Array] = {"tokens": self._tokens[:depth], "scores": self._scores[:depth]}
            self._bound[depth] = Bound(graph, {name: given[name] for name in inputs}, made)
        return self._bound[depth]
