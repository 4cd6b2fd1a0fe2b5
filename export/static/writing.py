"""The static graphs of a part: their sizes, and their files beside the finished graph, over the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from paceline.export.errors import ExportError
from paceline.export.report import Facts
from paceline.export.static.graph import Sizes, static_as, windows_of
from paceline.export.static.tables import Table, tables_of
from paceline.export.weights import append_weights
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


def write_tables(graph: ir.Model, sizes: Buckets, folder: Path) -> list[Table]:
    """The tables of a finished graph that was written to this folder, put behind its weights."""
    tables = tables_of(graph, sizes.contexts[-1])
    stored = append_weights([table.tensor for table in tables], folder)
    return [Table(table.name, table.axis, tensor) for table, tensor in zip(tables, stored, strict=True)]


def write_static(
    graph: ir.Model, sizes: Buckets, tables: Sequence[Table], folder: Path, prefix: str = ""
) -> int:
    """Write the static graphs of a finished graph into its folder, and return their bytes. prefix: of their names."""
    written = 0
    for context in sizes.contexts:
        for rows, prompt in [*((rows, False) for rows in sizes.rows), (sizes.prompt, True)]:
            made = static_as(graph, Sizes(rows, 1 if prompt else rows, context), tables)
            raw = ir.to_proto(made).SerializeToString()
            write_atomically(folder / f"{prefix}{static_name(rows, context, prompt)}", raw, private=False)
            written += len(raw)
    return written
