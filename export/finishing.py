"""A graph with its weights as they are stored becomes a part of a bundle: its files, and what the manifest says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from paceline.export.caches import Narrow, write_cached_graphs
from paceline.export.check import count_nodes
from paceline.export.drafts import check_drafts, with_drafts
from paceline.export.order import Order
from paceline.export.report import Facts, part_of
from paceline.export.shrink import Source
from paceline.export.static.tables import Table
from paceline.export.static.writing import buckets_of, notes_on, write_static, write_tables
from paceline.export.storage import layout_of
from paceline.export.streams import streaming
from paceline.export.weights import DATA, GRAPH, write_model
from paceline.runtime.buckets import Buckets
from paceline.runtime.manifest import Part, Weight


@dataclass(frozen=True, slots=True)
class Written:
    """A graph in the folder `place` of a bundle. weights: where the large ones stand. caches: its twins for narrow
    caches. bytes: of all these files. static, tables: sizes of static graphs, and what they look up.
    """

    graph: ir.Model
    place: str
    weights: dict[str, Weight]
    caches: dict[Narrow, str]
    bytes: int
    static: Buckets | None = None
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    """What is to be said of it."""


def write_graphs(
    name: str, graph: ir.Model, known: Facts, order: Order, work: Path, done: Callable[[float], None]
) -> Written:
    """Write the graph of a part, and its twins. Raises ExportError for one that they cannot be made of."""
    place = "target" if name == "target" else f"drafters/{name}"
    folder = work / place
    weights, size = write_model(graph, folder, done)
    caches = write_cached_graphs(graph, folder / GRAPH)
    size += sum((folder / file).stat().st_size for file in caches.values())
    if not order.static:
        return Written(graph, place, weights, caches, size)
    sizes = buckets_of(graph, known, order.static_rows, order.static_contexts)
    notes = notes_on(known, order.static_contexts)
    before = (folder / DATA).stat().st_size
    tables = write_tables(graph, sizes, folder)
    size += (folder / DATA).stat().st_size - before + write_static(graph, sizes, tables, folder)
    return Written(graph, place, weights, caches, size, sizes, tuple(tables), notes)


def finish(
    name: str,
    made: Written,
    architecture: str,
    known: Facts,
    source: Source,
    order: Order,
    work: Path,
    config: Any = None,
) -> tuple[Part, int]:
    """What the manifest says of the part, and the bytes of its files; a draft model gets graphs that draft, checked.

    config: of the checkpoint, which says whether a draft model has streams; None where none can have any.
    Raises ExportError where these draft something else than the model.
    """
    place, taps = made.place, order.taps if name == "target" else ()
    nodes, layout = count_nodes(made.graph, known.layers), layout_of(made.graph.graph)
    part = msgspec.structs.replace(
        part_of(f"{place}/{GRAPH}", architecture, known, source, order, taps, nodes, made.weights, layout),
        caches={form: f"{place}/{file}" for form, file in made.caches.items()},
        static=made.static,
    )
    part = streaming(name, part, config)
    if name == "target" or part.streams or part.static is not None:
        return part, made.bytes
    part, more = with_drafts(part, made.graph, work)
    check_drafts(name, work, part)
    return part, made.bytes + more
