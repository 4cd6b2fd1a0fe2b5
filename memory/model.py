"""What every part of a running bundle takes, in bytes (after SpecMemo, 2506.01986, with our own graph contract).

A pass returns only its new rows, so there is no second copy of the cache, and asks for logits only where a token
is chosen. What cannot be counted (the process, ONNX Runtime's own structures, temporaries of a pass) is estimated
by coefficients that a first load on a device replaces by what it measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from paceline.memory.cache import CacheFormat, KeyValueCache

PAGE = 4096


@dataclass(frozen=True, slots=True)
class Sizes:
    """One model of a bundle. width: columns of its widest product but the vocabulary's. Bytes: weights, graph."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    width: int
    vocab: int
    context: int
    weights: int
    graph: int

    def row(self, form: CacheFormat) -> int:
        """Bytes of one cache row."""
        return KeyValueCache.row_bytes(self.layers, self.kv_heads, self.head_dim, form)

    def new_row(self) -> int:
        """Bytes of one row that a pass returns, always float32."""
        return self.row("fp32")

    def activations(self, rows: int) -> int:
        """Estimate of what a pass over this many rows holds between its operators at a time."""
        return rows * 4 * (4 * self.hidden + 3 * self.width // 2)


class Measured(NamedTuple):
    """Overheads of one model: its session, without weights; and a pass's temporaries per row of a chunk.

    rows: the chunk that was measured, 0 where nothing was."""

    session: int
    per_row: float
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Overheads:
    """What is not counted but measured: bytes resident before the bundle, and of each model."""

    process: int
    target: Measured
    draft: Measured | None = None
    drafting: int = 0
    """The draft model's whole growth beyond weights and buffers is in `draft`; this is the stores' estimate."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run: what the planner varies, and what the user fixed (context, cache).

    nodes: drafted tokens a round, 0 is plain decoding. chunk: prompt tokens a pass. model: with a draft model,
    whose cache has `draft_rows` rows. free: with drafters that need none.
    """

    context: int
    cache: CacheFormat
    nodes: int
    depth: int
    chunk: int
    model: bool
    free: bool
    draft_rows: int


@dataclass(frozen=True, slots=True)
class Term:
    """One line of a plan."""

    part: str
    what: str
    bytes: int


PROCESS, RESERVE = "Python, ONNX Runtime, tokenizer", "allocators, growth of the interpreter"
FRONTIER = 4
"""Rows that a draft model scores at a time; its scratch holds a level for each step down, and one more."""


def terms(
    choice: Choice, target: Sizes, draft: Sizes | None, overheads: Overheads, stores: int
) -> Iterator[Term]:
    """Everything that a choice takes. stores: bytes of the tables of drafters without a model."""
    yield Term("process", PROCESS, overheads.process)
    yield from _model(
        "target", choice, target, overheads.target, choice.context, choice.nodes + 1, choice.chunk
    )
    yield Term("target", "choosing tokens", 16 * target.vocab)
    if choice.model and draft is not None and overheads.draft is not None:
        scratch = FRONTIER * (choice.depth + 1)
        rows = min(choice.draft_rows, draft.context) + scratch
        yield from _model("drafter", choice, draft, overheads.draft, rows, FRONTIER, choice.chunk)
    if choice.free:
        yield Term("drafter", "n-gram, suffix and recycling tables", stores)


def _model(
    part: str, choice: Choice, sizes: Sizes, measured: Measured, rows: int, widest: int, chunk: int
) -> Iterator[Term]:
    most = max(widest, chunk)
    yield Term(part, "weights", _pages(sizes.weights))
    yield Term(part, "session", measured.session)
    yield Term(part, "cache", 2 * sizes.layers * _pages(rows * sizes.row(choice.cache) // (2 * sizes.layers)))
    yield Term(part, "new rows", _pages(most * sizes.new_row()))
    yield Term(part, "logits", _pages(widest * sizes.vocab * 4))
    yield Term(part, "masks and indices", most * most + 65536 + 64 * most + _SHAPES * 300 * sizes.layers)
    yield Term(part, "activations", math.ceil(most * measured.per_row))


_SHAPES = 48
"""Shapes of passes that stay bound; each binding takes some 300 bytes a layer."""


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def reserve(total: int) -> int:
    """What a plan keeps back: allocators round up, and interpreters grow a little."""
    return 3_000_000 + total // 200
