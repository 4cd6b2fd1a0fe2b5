"""The static graphs of a part: their sizes, and their files beside the finished graph, over the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import onnx_ir as ir
import onnx_ir.passes.common as common

from paceline.export.errors import ExportError
from paceline.export.exact_graph import exactly
from paceline.export.report import Facts
from paceline.export.static.graph import Sizes, static_as, windows_of
from paceline.export.static.halves import Tensors, half_of, in_halves, wide_of
from paceline.export.static.tables import Table, tables_of
from paceline.export.static.weights import bytes_of, write_apart
from paceline.export.weights import LEAST, append_weights
from paceline.runtime.buckets import SPARE, Buckets, static_name
from paceline.runtime.bundle.whole_file import write_atomically

PROMPT = 64
"""Rows of a graph for prompts, at least."""
_FIRST, _TIMES = 256, 4
"""Cache rows of the first bucket, and how many times as many the next one has."""


def buckets_of(graph: ir.Model, known: Facts, rows: Sequence[int], contexts: Sequence[int]) -> Buckets:
    """The sizes for a part. rows, contexts: as the order has them; no contexts are those that suit the part's own.

    Raises ExportError for a part that static graphs cannot be made of.
    """
    if known.rope is not None:
        raise ExportError(
            "its rotary frequencies depend on the length of the text, which static graphs do not have: "
            "use --profile portable"
        )
    longest = min(contexts[-1], known.context) if contexts else known.context
    shorter = contexts[:-1] if contexts else _usual(longest)
    sizes = sorted({*(n for n in shorter if n < longest), longest + SPARE})
    prompt = max(PROMPT, 2 * rows[-1])
    return Buckets(rows=list(rows), prompt=prompt, contexts=sizes, windows=windows_of(graph))


def notes_on(known: Facts, contexts: Sequence[int]) -> tuple[str, ...]:
    """Which of the contexts that were asked for the model does not have."""
    if not (beyond := [str(context) for context in contexts if context > known.context]):
        return ()
    asked = f"--static-context {','.join(beyond)}"
    return (f"{asked} is more than this model has: its static graphs read {known.context} tokens",)


def _usual(longest: int) -> list[int]:
    sizes = [_FIRST]
    while sizes[-1] * _TIMES < longest:
        sizes.append(sizes[-1] * _TIMES)
    return sizes


@dataclass(frozen=True, slots=True)
class StaticForms:
    """What static graphs are made of: a graph of stock operators, and its tables.

    halves: weights and tables in 16 bits by the names of those that they were made of, where the graphs compute so.
    """

    graph: ir.Model
    sizes: Buckets
    tables: tuple[Table, ...]
    halves: Tensors | None = None

    def made(self, sizes: Sizes) -> ir.Model:
        """A static graph of these sizes."""
        model = static_as(self.graph, sizes, self.tables)
        if self.halves is not None:
            in_halves(model, self.halves)
        return model

    def exactly(self) -> StaticForms:
        """The same without rounded activations."""
        return replace(self, graph=exactly(self.graph))


def store_forms(graph: ir.Model, sizes: Buckets, folder: Path, beside: ir.Model) -> StaticForms:
    """Put what static graphs of a finished graph read into the folder of a graph that was written, `beside`.

    The very same graph in float32 has its weights there, and its tables go behind them. Otherwise all that is not there
    goes into a file of its own.
    """
    tables = tables_of(graph, sizes.contexts[-1])
    if graph is beside and sizes.type == "fp32":
        stored = append_weights([table.tensor for table in tables], folder)
        kept = [Table(t.name, t.axis, tensor) for t, tensor in zip(tables, stored, strict=True)]
        return StaticForms(graph, sizes, tuple(kept))
    values = {str(table.tensor.name): table.tensor for table in tables}
    for value in graph.graph.initializers.values():
        if value.const_value is not None and value.const_value.nbytes >= LEAST:
            values[str(value.name)] = value.const_value
    if sizes.type == "fp16":
        values = {name: half_of(tensor) for name, tensor in values.items()}
    placed = write_apart(values, beside, folder)
    sizes = msgspec.structs.replace(sizes, weights=bytes_of(placed.values()))
    if graph is not beside:
        common.ClearMetadataAndDocStringPass()(graph)
        _keep(graph, placed)
    if sizes.type == "fp16":
        return StaticForms(graph, sizes, tuple(tables), placed)
    kept = [Table(table.name, table.axis, placed[str(table.tensor.name)]) for table in tables]
    return StaticForms(graph, sizes, tuple(kept))


def _keep(graph: ir.Model, placed: Tensors) -> None:
    """Let a graph hold nothing of the model that it was captured from: that goes before it does."""
    for value in graph.graph.initializers.values():
        stored = placed.get(str(value.name))
        if stored is None and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
        elif stored is not None and stored.dtype == value.dtype:
            value.const_value = stored
        elif stored is not None:
            value.const_value = wide_of(stored, value)


def write_static(forms: StaticForms, folder: Path, prefix: str = "") -> int:
    """Write static graphs into the folder of their part, and return their bytes. prefix: of their names."""
    written, sizes = 0, forms.sizes
    for context in sizes.contexts:
        for rows, prompt in [*((rows, False) for rows in sizes.rows), (sizes.prompt, True)]:
            made = forms.made(Sizes(rows, 1 if prompt else rows, context))
            raw = ir.to_proto(made).SerializeToString()
            write_atomically(folder / f"{prefix}{static_name(rows, context, prompt)}", raw, private=False)
            written += len(raw)
    return written
