"""Passes over static graphs: cut into the rows that there is a graph for, padded, and told by a bias what they see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.memory.buckets import BucketCache, reachable
from paceline.runtime.buckets import Buckets, static_name
from paceline.runtime.contracts import Array, Logits
from paceline.runtime.manifest import Part
from paceline.runtime.model.contract import bias_name, static_contract
from paceline.runtime.model.device_rows import KINDS, DeviceRows, NewRows
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.passes import Bound, Buffers, Mask, Ran
from paceline.runtime.model.rows import rows_for

HIDDEN = np.float32(-30000)
"""Added to the score of a row that may not be seen: 16 bits hold it, and no softmax leaves anything of such a score."""
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a graph: rows `at` to `at + rows` of a pass, by a graph for `size`. prompt: see Buckets."""

    at: int
    rows: int
    size: int
    prompt: bool


class StaticGraphs:
    """The static graphs of a part, opened when they are first needed.

    opened: opens the graph at a path of the bundle.
    """

    def __init__(self, part: Part, opened: Callable[[str], Graph]) -> None:
        if part.static is None:
            raise ValueError(f"{part.graph} has no static graphs beside it")
        self.part, self.buckets = part, part.static
        self._opened = opened
        self._graphs: dict[str, Graph] = {}

    @property
    def provider(self) -> str:
        """The execution provider that runs them."""
        if not self._graphs:
            self.graph(self.buckets.rows[0], self.buckets.contexts[0], prompt=False)
        return next(iter(self._graphs.values())).provider

    def graph(self, rows: int, context: int, prompt: bool) -> Graph:
        """The one for so many new rows over so many of the cache. Raises BundleError where it is another one."""
        name = static_name(rows, context, prompt)
        if name not in self._graphs:
            graph = self._opened(self.part.beside(name))
            graph.check(*static_contract(self.part, rows, context, prompt))
            self._graphs[name] = graph
        return self._graphs[name]

    def close(self) -> None:
        """Let go of them all: they cannot run again."""
        for graph in self._graphs.values():
            graph.close()

    def open(self, rows: int) -> None:
        """Open all that a cache for so many rows is read by, when it has its last size."""
        context = reachable(self.buckets.contexts, rows)[-1]
        for size in self.buckets.rows:
            self.graph(size, context, prompt=False)
        self.graph(self.buckets.prompt, context, prompt=True)

    def cache(self, rows: int, whole: bool) -> BucketCache:
        """A cache for so many rows. Raises ArgumentError where the graphs read fewer."""
        sizes = reachable(self.buckets.contexts, rows)
        reader = self.graph(self.buckets.rows[0], sizes[-1] if whole else sizes[0], prompt=False)
        form = self.buckets.type
        return BucketCache(sizes, lambda size: rows_for(reader, self.part, size, form), whole, form)


def runs(buckets: Buckets, n: int, want: int) -> Iterator[Run]:
    """How a pass of n rows that asks for logits of the last `want` is cut."""
    at = 0
    while at < n:
        left = n - at
        prompt = want <= 1 and left > buckets.rows[-1]
        rows = min(left, buckets.prompt if prompt else buckets.rows[-1])
        size = buckets.prompt if prompt else next(size for size in buckets.rows if size >= rows)
        yield Run(at, rows, size, prompt)
        at += rows


class _Arrays:
    """One graph with its arrays, which are filled before it runs."""

    def __init__(self, graph: Graph, part: Part, cache: BucketCache, size: int, prompt: bool) -> None:
        inputs, outputs = static_contract(part, size, cache.rows, prompt)
        self.ids = np.zeros((2, size), np.int32)
        self.asked = np.zeros(1, np.int32) if prompt else np.arange(size, dtype=np.int32)
        kind = KINDS[cache.form]
        self.biases = {w: np.zeros((size, cache.rows + size), kind) for w in _windows(part)}
        self.logits: Logits = np.zeros((len(self.asked), part.vocab), np.float32)
        self.taps: dict[str, Array] = {tap: np.zeros((size, part.hidden), np.float32) for tap in part.taps}
        self.new = _new_rows(cache, part, size)
        given: dict[str, Any] = {"token_ids": self.ids[0], "positions": self.ids[1], "rows": self.asked}
        given |= {bias_name(window): bias for window, bias in self.biases.items()}
        given |= cache.inputs()
        made: dict[str, Any] = {"logits": self.logits, **self.taps}
        if isinstance(self.new, NewRows):
            made |= self.new.outputs()
        else:
            for i in range(part.layers):
                made |= {f"new_k.{i}": self.new[i], f"new_v.{i}": self.new[part.layers + i]}
        self.bound = Bound(graph, {n: given[n] for n in inputs}, {n: made[n] for n in outputs})
        self._context = cache.rows

    def fill(self, run: Run, tokens: Ids, places: Ids, mask: Mask, past: int) -> None:
        """Put in the rows of a run, whose pass has these tokens; every row beyond them sees itself alone."""
        m, end = run.rows, run.at + run.rows
        self.ids[:, m:] = 0
        self.ids[0, :m], self.ids[1, :m] = tokens[run.at : end], places[run.at : end]
        if run.prompt:
            self.asked[0] = m - 1
        waiting = mask.shape[1] - len(tokens)
        committed, cached = past - waiting, waiting + run.at
        for window, bias in self.biases.items():
            seen, far = mask[run.at : end, : waiting + end], places[run.at : end, None] - window
            bias.fill(HIDDEN)
            if window:
                seen = seen.copy()  # what waits in the cache is always near enough
                seen[:, waiting:] &= places[None, :end] > far
                np.copyto(bias[:m, :committed], 0, where=np.arange(committed) > far)
            else:
                bias[:m, :committed] = 0
            np.copyto(bias[:m, committed : committed + cached], 0, where=seen[:, :cached])
            np.copyto(bias[:m, self._context : self._context + m], 0, where=seen[:, cached:])
            rest = np.arange(m, len(bias))
            bias[rest, self._context + rest] = 0


def _new_rows(cache: BucketCache, part: Part, size: int) -> Floats | NewRows:
    """Where a graph for so many rows puts their keys and values: where the cache lies."""
    if isinstance(cache.held, DeviceRows):
        return cache.held.fresh(size)
    return np.zeros((2 * part.layers, part.kv_heads, size, part.head_dim), KINDS[cache.form])


def _windows(part: Part) -> Sequence[int]:
    assert part.static is not None
    return part.static.windows


def _first_rows(new: Floats | NewRows, rows: int) -> Floats | NewRows:
    return new.part(rows) if isinstance(new, NewRows) else new[:, :, :rows]


class StaticPasses(Buffers):
    """Runs passes of any shape over static graphs.

    A pass of more rows than any graph takes goes in several runs: what one made lies behind the cache's rows when the
    next one reads them. The rest as of Buffers.
    """

    def __init__(
        self, graphs: StaticGraphs, cache: BucketCache, widest: int, chunk: int, reserved: bool
    ) -> None:
        super().__init__(graphs.part, widest, chunk, reserved, isinstance(cache.held, DeviceRows))
        self._graphs, self._cache = graphs, cache
        self._arrays: dict[tuple[int, bool], _Arrays] = {}
        self._context = 0
        if reserved:
            for size in graphs.buckets.rows:
                self._bound(size, prompt=False)
            self._bound(graphs.buckets.prompt, prompt=True)

    def close(self) -> None:
        """Give all memory back; nothing can run again."""
        self._arrays.clear()
        super().close()

    def run(
        self,
        tokens: Sequence[int] | Ids,
        positions: Array | int,
        mask: Mask,
        past: int,
        want: int,
        features: Array | None = None,
    ) -> Ran:
        """One pass; `want` rows at its end are asked for logits. Raises ValueError where the cache has no room."""
        if features is not None:
            raise ValueError("static graphs read no hidden states")
        n = len(tokens)
        ids, places = np.asarray(tokens, np.int64), np.broadcast_to(positions, n)
        cut = list(runs(self._graphs.buckets, n, want))
        logits, odds, new, taps = self._outputs(n, want)
        self.count += 1
        for run in cut:
            self._cache.reach(past + run.at)
            arrays = self._bound(run.size, run.prompt)
            arrays.fill(run, ids, places, mask, past)
            arrays.bound.run()
            if len(cut) == 1:
                said = arrays.logits if run.prompt else arrays.logits[:n]
                held = {tap: array[:n] for tap, array in arrays.taps.items()}
                return Ran(ids, said[len(said) - want :], odds, _first_rows(arrays.new, n), held)
            self._take(run, arrays, n - want, logits, new, taps)
            if run is not cut[-1] or isinstance(arrays.new, NewRows):
                self._cache.write(past + run.at, arrays.new, slice(run.rows))
        rows = self._cache.held
        return Ran(ids, logits, odds, rows.lying(past, n) if isinstance(rows, DeviceRows) else new, taps)

    def _take(
        self, run: Run, arrays: _Arrays, first: int, logits: Logits, new: Floats, taps: dict[str, Array]
    ) -> None:
        """Put what a run gave into the arrays of its pass, whose rows from `first` on are asked for logits."""
        end = run.at + run.rows
        if not isinstance(arrays.new, NewRows):
            new[:, :, run.at : end] = arrays.new[:, :, : run.rows]
        for tap, array in arrays.taps.items():
            taps[tap][run.at : end] = array[: run.rows]
        start = end - 1 if run.prompt else run.at
        if (begin := max(start, first)) < end:
            logits[begin - first : end - first] = arrays.logits[begin - start : end - start]

    def _bound(self, size: int, prompt: bool) -> _Arrays:
        if self._context != self._cache.rows:  # it has moved: what is bound is gone
            self._arrays.clear()
            self._context = self._cache.rows
        key = size, prompt
        if key not in self._arrays:
            graph = self._graphs.graph(size, self._context, prompt)
            self._arrays[key] = _Arrays(graph, self._graphs.part, self._cache, size, prompt)
        return self._arrays[key]
