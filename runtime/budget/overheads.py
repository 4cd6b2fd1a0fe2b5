"""What a bundle takes beyond weights and buffers on this device: measured at its first planned load, then kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from msgspec.structs import replace

from paceline.memory.budget import peak_memory, resident
from paceline.memory.model import FRONTIER, Fixed, Measured, Sizes
from paceline.runtime.adaptation.step import TrainingStep
from paceline.runtime.budget.libraries import library_of
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.bundle.measurements import keep, read_all
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import Device
from paceline.runtime.model.exits import Exits
from paceline.runtime.model.head import Head, Shape, tree_bytes
from paceline.runtime.model.key import Key
from paceline.runtime.model.model import Model
from paceline.runtime.model.skipping import Skipping
from paceline.runtime.model.streams import Streams
from paceline.runtime.model.unrolled import Unrolled
from paceline.runtime.ops.library import available
from paceline.runtime.part import WINDOW, tree_shape
from paceline.runtime.translation.sides import sides_bytes

_FILE = "memory.json"
_KEPT = 500
_ENGINE = 10_300_000
"""What the first session brings: pages of ONNX Runtime and of the kernels, its pools."""
_GRAPH = 40
"""Bytes of structures for each byte of a graph's file."""
_LEAST, _MOST = 4096, 2**28
"""What no measurement is below, or above: then the file was damaged."""
_PACKED, _UNFOLDED, _REPACKED = 1.5, 4.0, 1.6
"""Without kernels ONNX Runtime copies weights: of 16 bits (more than so many bytes a parameter) as floats, others once
and a half, as measured on two bundles."""
_UNFOLDED_EACH = 3.0
"""The same of each static graph, whose attention is ONNX Runtime's too: 2.1 to 2.9 were measured."""
_TELLING = 128
"""Rows of a prompt pass from which on what it adds can be told from what was there."""
_LOGITS = 12
"""Arrays as large as the logits that a training step has at a time."""
_FEW = 16
"""Rows of the smallest chunk that is planned."""


def rows_of(part: Part, beside: bool = False) -> int:
    """Rows that a part is asked for at a time. beside: whether it goes on beside the target's pass."""
    if part.streams:
        return part.deepest * (FRONTIER if beside else 1)
    alone = part.kind in ("head", "skip") or (part.kind == "exit" and part.layers)
    return 1 if alone else FRONTIER


def sizes_of(bundle: Bundle, part: Part, whole: bool = True, halved: bool = False) -> Sizes:
    """The sizes of a part that its memory depends on. whole: see `Fixed`. halved: whether it runs in two graphs."""
    columns = [16 * w.shape[0] for w in part.weights.values() if len(w.shape) == 3]
    inner = [n for n in columns if n < min(part.vocab, 8 * part.hidden + 1)]
    files = bundle.manifest.files
    levels, borrows, fixed = part.deepest, part.borrows, _fixed(part, whole)
    opened = [*part.graphs_for("fp32"), *part.exits.values()]
    if part.static is not None and fixed is not None:
        contexts = fixed.contexts[-1:] if whole else fixed.contexts
        opened = [part.beside(name) for context in contexts for name in part.static.names_over(context)]
    stores = [] if borrows else [part.data]
    if halved and part.split is not None:
        opened, stores = [part.split.first, part.split.rest], [*part.stores]
    return Sizes(
        layers=part.layers,
        kv_heads=part.kv_heads,
        head_dim=part.head_dim,
        hidden=part.hidden,
        width=max(inner, default=6 * part.hidden),
        vocab=part.output[1],
        context=part.context,
        weights=_weights(bundle, part, stores),
        graph=sum(files[path].bytes for path in opened),
        graphs=len(opened),
        taps=len(part.taps),
        adapters=part.adapter_bytes,
        fed=part.features or 0,
        drafted=levels * part.vocab,
        trees=sum(tree_bytes(Shape(*tree_shape(name))) for name in part.trees),
        vocabularies=0 if part.tokenizer is None else sides_bytes(part.vocab, bundle.manifest.target.vocab),
        widest=rows_of(part),
        borrows=borrows,
        fixed=fixed,
    )


def _weights(bundle: Bundle, part: Part, stores: Iterable[str]) -> int:
    """Bytes of the weights of its graphs that run. stores: the files that they are in, where they are not static."""
    if part.static is not None and part.static.weights is not None:
        return part.static.weights
    files = bundle.manifest.files
    return sum(files[path].bytes for path in stores if path in files)


def _fixed(part: Part, whole: bool) -> Fixed | None:
    if (sizes := part.static) is None:
        return None
    return Fixed((*sizes.rows, sizes.prompt), tuple(sizes.contexts), len(sizes.windows), whole, sizes.type)


def estimate(sizes: Sizes, part: Part, first: bool, device: Device) -> Measured:
    """Before anything was measured. first: whether it is the process's first session."""
    session = _ENGINE * first + _GRAPH * sizes.graph
    session += (500_000 + library_of(device).each) * sizes.graphs
    if not (available() and device.on_cpu) or sizes.fixed is not None:
        # A copy of what it shares is its own, and each static graph has one.
        shared = sum(weight.bytes for weight in part.weights.values()) if sizes.borrows else 0
        copied = shared * max(len(part.exits), 1) or sizes.weights
        wide = copied > _PACKED * part.parameters
        if sizes.fixed is None:
            session += int((_UNFOLDED if wide else _REPACKED) * copied)
        else:
            session += int((_UNFOLDED_EACH if wide else _REPACKED) * copied) * sizes.graphs
    return Measured(session, sizes.activations(1))


def weigh(
    key: Key,
    opened: int,
    model: Model,
    drafting: Head | Streams | Unrolled | Exits | None = None,
    library: int = 0,
) -> None:
    """Measure the overheads of a model at its first planned load, in a few passes, and remember them.

    opened: what opening the graphs added to the process, weights included. drafting: what drafts with it. library:
    bytes that the library of its device took besides, which came into the process with it.
    Buffers must be resident, and no session of another bundle open: what sessions share would be counted to neither.
    """
    rows = max(min(model.chunk, model.context - 1), 2)
    known = recall(key)
    if known is not None and known.rows >= rows:
        return
    # What the smallest passes add, and attention to a long context, is there whatever the chunk: no share of a row.
    fixed = growth(lambda: _read_prompt(model, 2))
    fixed += growth(lambda: _read_prompt(model, min(rows, _FEW)))
    fixed += growth(lambda: model.probe(1, model.context - 1))
    if model.part.static is not None:  # each number of rows is a graph of its own
        for size in model.part.static.rows:
            fixed += growth(partial(_read_prompt, model, size))
    if drafting is not None:
        deepest = drafting.depths[-1]
        fixed += growth(lambda: drafting.probe(deepest, max(model.context - deepest, 0)))
    if isinstance(drafting, Head):
        for shape in drafting.trees:
            fixed += growth(partial(drafting.probe_tree, shape, model.context - 1))
    chunk = growth(lambda: _read_prompt(model, rows))
    sizes = sizes_of(key.bundle, key.part, halved=key.halved)
    # What few rows add drowns in pages that are there already.
    per_row = max(chunk / rows, 0.0 if rows >= _TELLING else sizes.activations(1))
    session = max(max(opened - sizes.weights, 0) + fixed - library, _LEAST)
    keep(_FILE, key.text(), list(Measured(session, per_row, rows)), _KEPT)


def weigh_skipping(key: Key, opened: int, model: Skipping) -> None:
    """The same of the target with blocks left out, which has neither weights nor prompt chunks of its own."""
    if recall(key) is None:
        fixed = growth(lambda: model.probe(1, model.context - 1))
        sizes = sizes_of(key.bundle, key.part)
        keep(
            _FILE,
            key.text(),
            list(Measured(max(opened, _LEAST) + fixed, sizes.activations(1), 1)),
            _KEPT,
        )


def step_key(bundle: Bundle, part: Part) -> Key:
    """What the overheads of a part's training step hold for; it runs on the CPU, in one thread."""
    return Key(bundle, replace(part, graph=part.training, caches={}, drafts={}), "cpu", 1, "fp32")


def estimate_step(sizes: Sizes, graph: int) -> Measured:
    """What a training step takes, before it was measured. graph: bytes of its file.

    Its LM head is unpacked, and so are the other products of the last block; logits, their law and gradients are there
    for all rows.
    """
    matrices = 2 * sizes.hidden * (sizes.vocab + sizes.hidden + 2 * sizes.width)
    rows = _LOGITS * WINDOW * sizes.vocab
    return Measured(_GRAPH * graph + 500_000 + 4 * (matrices + rows), 0.0)


def weigh_step(key: Key, opened: int, step: TrainingStep) -> None:
    """Measure what a training step takes at its first planned load. key: its own, see `step_key`.

    opened: what opening its graph added to the process.
    """
    if recall(key) is None:
        step.probe(shrink=True)
        added = growth(step.probe)
        keep(_FILE, key.text(), list(Measured(max(opened, _LEAST) + added, 0.0, WINDOW)), _KEPT)


def _read_prompt(model: Model, rows: int) -> None:
    model.prefill([0] * min(rows, model.context))
    model.rewind(0)


def growth(act: Callable[[], None]) -> int:
    """What something adds to the process at its highest."""
    before, highest = resident(), peak_memory() or 0
    act()
    peak = peak_memory() or 0
    return max(resident() - before, peak - before if peak > highest else 0, 0)


def recall(key: Key) -> Measured | None:
    """What was measured before; None where nothing was, or where the file makes no sense."""
    found = read_all(_FILE).get(key.text())
    if not isinstance(found, list) or len(found) != 3:
        return None
    session, per_row, rows = found
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in found):
        return None
    sizes = sizes_of(key.bundle, key.part, halved=key.halved)
    most = 2**30 + 16 * sizes.weights * sizes.graphs
    if not (_LEAST <= session <= most and 0 <= per_row <= _MOST and 1 <= rows <= _MOST):
        return None
    return Measured(int(session), float(per_row), int(rows))
