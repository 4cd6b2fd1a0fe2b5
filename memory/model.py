"""What every part of a running bundle takes, in bytes (after SpecMemo, 2506.01986, with our own graph contract).

A pass returns only its new rows, so there is no second copy of the cache, and asks for logits only where a token
is chosen. What cannot be counted (the process, ONNX Runtime's own structures, temporaries of a pass) is estimated
by coefficients that a first load on a device replaces by what it measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paceline.memory.cache import CacheFormat, KeyValueCache
from paceline.memory.room import Room

PAGE = 4096
FRONTIER = 4
"""Rows that a draft model scores at a time."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Sizes of static graphs: new rows of each, the last one for prompts; rows of the cache; how many biases each has.

    whole: whether the cache has its last size from the start, as under a budget, or grows from one to the next. form:
    of cache, new rows and biases.
    """

    runs: tuple[int, ...]
    contexts: tuple[int, ...]
    biases: int
    whole: bool = True
    form: CacheFormat = "fp32"

    def held(self, rows: int) -> tuple[int, ...]:
        """The sizes of a cache that comes to hold so many rows."""
        up_to = next((at for at, size in enumerate(self.contexts) if size >= rows), len(self.contexts) - 1)
        return self.contexts[up_to : up_to + 1] if self.whole else self.contexts[: up_to + 1]

    def bias_bytes(self, context: int) -> int:
        """Bytes of all biases over a cache of this size."""
        return (
            (2 if self.form == "fp16" else 4)
            * self.biases
            * sum(rows * (context + rows) for rows in self.runs)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """One model of a bundle. width: columns of its widest product but the vocabulary's. Bytes: weights, graph.

    vocab: columns of the rows that a pass is asked for, at most `widest` of a draft model. graph: of all its graphs.
    scratch: cache rows besides the context's, where a draft tree grows. kept: taps kept of every committed row.
    adapters: bytes of the weights that a session has of its own. fed: columns of hidden states that a row is fed
    with. drafted: scores of all levels that are drafted in one call. borrows: weights and cache are the target's.
    trees: bytes of the trees of a head. fixed: of static graphs, where these run. vocabularies: what leads from
    another vocabulary to the target's, the n-gram cache included. learning: training step, optimiser and samples of a
    draft model that learns. elsewhere: whether the cache lies on a device, and what static graphs make of new rows.
    """

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    width: int
    vocab: int
    context: int
    weights: int
    graph: int
    taps: int = 0
    scratch: int = 0
    kept: int = 0
    adapters: int = 0
    graphs: int = 1
    fed: int = 0
    drafted: int = 0
    trees: int = 0
    vocabularies: int = 0
    learning: int = 0
    widest: int = FRONTIER
    borrows: bool = False
    fixed: Fixed | None = None
    elsewhere: bool = False

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
    """What is not counted but measured: bytes resident before the bundle, and of each model.

    stores: bytes of the tables of drafters without a model. library: what comes with the target's device besides its
    graphs, once in a process. draft_libraries: the same of other devices that models draft on.
    """

    process: int
    target: Measured
    drafts: tuple[Measured, ...] = ()
    stores: int = 0
    library: int = 0
    draft_libraries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to run: what the planner varies, and what the user fixed (context, cache).

    chunk: prompt tokens a pass. A room of 0 nodes is plain decoding.
    """

    context: int
    cache: CacheFormat
    chunk: int
    room: Room

    @property
    def draft_rows(self) -> int:
        """Rows of a draft model's cache."""
        return min(self.room.draft_rows or self.context, self.context)


@dataclass(frozen=True, slots=True)
class Term:
    """One line of a plan."""

    part: str
    what: str
    bytes: int


PROCESS, RESERVE = "Python, ONNX Runtime, tokenizer", "allocators, growth of the interpreter"
LIBRARIES = "libraries of devices"
TEXT = "tokenizing a prompt"
TABLES = "tables of drafters without a model"
LEARNING = "learning from use"
ON_DEVICE = ", on its device"
"""Counted as all else is: processors and many GPUs have one memory."""
_TOKENIZING = 800
"""Bytes that a tokenizer holds for each token of a text while it works."""
READING_BYTES = 64
"""Bytes that a text in two vocabularies, or a text to learn from, takes for each token of the target."""
_CHOOSING = 48
"""Bytes a token of the vocabulary, for a sampled row and what is left of a rejected one."""


def terms(choice: Choice, target: Sizes, drafts: Sequence[Sizes], overheads: Overheads) -> Iterator[Term]:
    """Everything that a choice takes."""
    yield Term("process", PROCESS, overheads.process)
    if libraries := overheads.library + (overheads.draft_libraries if choice.room.models else 0):
        yield Term("process", LIBRARIES, libraries)
    yield Term("process", TEXT, _TOKENIZING * choice.context)
    yield from _model(
        "target", choice, target, overheads.target, choice.context, choice.room.nodes + 1, choice.chunk
    )
    yield Term("target", "choosing tokens", _CHOOSING * target.vocab)
    if choice.room.models and target.kept:
        yield Term(
            "target", "hidden states of the text", _pages(choice.context * target.kept * target.hidden * 4)
        )
    for draft, measured in zip(drafts, overheads.drafts, strict=True) if choice.room.models else ():
        rows = 0 if draft.borrows else min(choice.draft_rows, draft.context) + draft.scratch
        chunk = 1 if draft.borrows else choice.chunk
        yield from _model("drafter", choice, draft, measured, rows, draft.widest, chunk)
        if draft.vocabularies:
            yield Term("drafter", "two vocabularies", draft.vocabularies + READING_BYTES * choice.context)
        if draft.learning:
            yield Term("drafter", LEARNING, draft.learning + READING_BYTES * choice.context)
    if choice.room.tables:
        yield Term("drafter", TABLES, overheads.stores)


def _model(
    part: str, choice: Choice, sizes: Sizes, measured: Measured, rows: int, widest: int, chunk: int
) -> Iterator[Term]:
    most, said, cache = max(widest, chunk), widest, choice.cache
    made, there = most, ON_DEVICE if sizes.elsewhere else ""
    if (fixed := sizes.fixed) is not None:
        rows, cache = fixed.held(rows + widest)[-1], fixed.form
        made, said = most + sum(fixed.runs), widest + sum(fixed.runs[:-1]) + 1
    new = made * sizes.new_row()
    if fixed is not None:
        new = sum(fixed.runs) * sizes.row(fixed.form) + (0 if there else most * sizes.new_row())
    yield Term(part, "weights", _pages(sizes.weights))
    yield Term(part, "session", measured.session)
    planes = 2 * sizes.layers
    yield Term(part, f"cache{there}", planes * _pages(rows * sizes.row(cache) // planes) if planes else 0)
    yield Term(part, f"new rows{there if fixed else ''}", _pages(new))
    yield Term(part, "logits", _pages(said * sizes.vocab * 4))
    if fixed is not None:
        yield Term(part, "what rows see", _pages(fixed.bias_bytes(rows)))
    if sizes.fed:
        yield Term(part, "hidden states read", 2 * _pages(most * sizes.fed * 4))
    if sizes.drafted:
        yield Term(part, "scores of levels", _DRAFTED * _pages(sizes.drafted * 4))
    if sizes.trees:
        yield Term(part, "drafted trees", _pages(sizes.trees))
    if sizes.adapters:
        yield Term(part, "adapters", _pages(sizes.adapters))
    if sizes.taps:
        yield Term(part, "hidden taps", _pages(made * sizes.taps * sizes.hidden * 4))
    bound = (1 if sizes.borrows else _SHAPES) * _BOUND * sizes.layers
    yield Term(part, "masks and indices", most * most + 65536 + 64 * most + bound)
    yield Term(part, "activations", math.ceil(most * measured.per_row))


_DRAFTED = 5
"""Noise, scores, what noise is made from, and two more while a draft runs."""
_SHAPES, _BOUND = 48, 1100
"""Shapes of passes that stay bound, and bytes that a binding takes for each layer."""


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def reserve(total: int) -> int:
    """What a plan keeps back: allocators round up, and interpreters grow a little."""
    return 3_000_000 + total // 200
