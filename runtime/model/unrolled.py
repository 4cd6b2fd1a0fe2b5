"""A draft model that continues a text by several tokens in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.runtime.contracts import Array, Logits
from paceline.runtime.model.contract import ODDS, draft_contract
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.passes import Bound

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
MOST_READ = 2
"""Tokens that a call reads before it drafts: where all was accepted, the last draft and the target's own."""


class Unrolled:
    """Runs the graphs of a draft model in which each level reads the token that the level before chose.

    opened: its graph that drafts so many levels. Raises BundleError for a graph that is not what the manifest says.
    """

    def __init__(self, model: Model, opened: Callable[[int], Graph]) -> None:
        part = model.part
        self.model, self._opened = model, opened
        self.depths = tuple(sorted(part.drafts))
        """Levels that there are graphs for."""
        deepest, columns = self.depths[-1], part.vocab
        most = MOST_READ + deepest - 1
        self.ids: Ids = np.arange(columns)
        """What the columns of its logits stand for: ids of the target."""
        self.noise: Floats = np.zeros((deepest, columns), np.float32)
        """Added to the logits of each level before its token is chosen; whoever drafts writes into it."""
        self.kept: Floats = np.zeros((deepest, columns), np.float32)
        """As much again, for whoever writes the noise."""
        self._logits = np.zeros((deepest, columns), np.float32)
        self._tokens = np.zeros(deepest, np.int64)
        self._odds = np.zeros((deepest, 1), np.float32)
        self._read, self._places = np.zeros(MOST_READ, np.int64), np.zeros(most, np.int64)
        self._past, self._steps = np.zeros(1, np.int64), np.arange(most)
        self._new = np.zeros(2 * part.layers * part.kv_heads * most * part.head_dim, np.float32)
        self._bound: dict[tuple[int, int], tuple[Bound, Floats]] = {}
        self.calls_run = 0
        """How often its graphs ran."""

    @property
    def bytes(self) -> int:
        """Bytes of the buffers of its drafts."""
        return self.noise.nbytes + self.kept.nbytes + self._logits.nbytes

    @property
    def odds(self) -> list[float]:
        """What the last call predicted, level by level, see `Model.odds`."""
        found: list[float] = self._odds[:, 0].tolist()
        return found

    def open(self) -> None:
        """Open every graph, and make its buffers resident."""
        for buffer in (self.noise, self.kept, self._logits):
            buffer.fill(0)
        for levels in self.depths:
            self._bind(1, levels)

    def reach(self, levels: int) -> int:
        """The largest depth that there is a graph for and that has no more levels; 0 where there is none."""
        return next((depth for depth in reversed(self.depths) if depth <= levels), 0)

    def draft(self, unread: Sequence[int], levels: int) -> tuple[Ids, Logits]:
        """Run and commit at most `MOST_READ` tokens, and draft: tokens int64[levels], logits float32[levels, V].

        All drafted tokens but the last one are committed too. levels: one of `depths`. The next call overwrites both.
        """
        model, past = self.model, self.model.length
        new = self._run(unread, levels, past)
        chosen = self._tokens[:levels]
        model.keep(new, [*unread, *chosen[:-1].tolist()])
        return chosen, self._logits[:levels]

    def probe(self, rows: int, past: int) -> None:
        """What drafting so many levels takes, for its time alone, after `past` others."""
        self._run([0], self.reach(rows), past)

    def close(self) -> None:
        """Give all memory but the graphs' and its model's back; it cannot run again."""
        self._bound.clear()
        self.noise, self.kept, self._logits = (b[:0].copy() for b in (self.noise, self.kept, self._logits))

    def _run(self, unread: Sequence[int], levels: int, past: int) -> Floats:
        """New keys and values, [2 * layers, kv_heads, N, head_dim]."""
        count = len(unread)
        bound, new = self._bound.get((count, levels)) or self._bind(count, levels)
        self._read[:count] = unread
        np.add(self._steps, past, out=self._places)
        self._past[0] = past
        self.model.run(bound)
        self.calls_run += 1
        return new

    def _bind(self, count: int, levels: int) -> tuple[Bound, Floats]:
        model, part, graph = self.model, self.model.part, self._opened(levels)
        inputs, outputs = draft_contract(part, model.cache.form, levels)
        graph.check(inputs, outputs)
        rows = count + levels - 1
        planes = (2 * part.layers, part.kv_heads, rows, part.head_dim)
        new = self._new[: int(np.prod(planes))].reshape(planes)
        given: dict[str, Any] = {
            "token_ids": self._read[:count],
            "positions": self._places[:rows],
            "tree_mask": np.tri(rows, dtype=np.bool_),
            "past_len": self._past,
            "noise": self.noise[:levels],
            **model.fixed,
        }
        made: dict[str, Array] = {"tokens": self._tokens[:levels], "logits": self._logits[:levels]}
        if part.predictor is not None:
            made[ODDS] = self._odds[:levels]
        for i in range(part.layers):
            made |= {f"new_k.{i}": new[i], f"new_v.{i}": new[part.layers + i]}
        bound = Bound(graph, {name: given[name] for name in inputs}, made)
        self._bound[count, levels] = bound, new
        return bound, new
