"""A graph with its weights as they are stored becomes a part of a bundle: its files, and what the manifest says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from paceline.export.static.writing import StaticForms, buckets_of, notes_on, store_forms, write_static
from paceline.export.storage import layout_of
from paceline.export.streams import streaming
from paceline.export.weights import DATA, GRAPH, write_model
from paceline.memory.size import show_size
from paceline.runtime.buckets import STATIC_DATA, Buckets
from paceline.runtime.manifest import Part, Weight


@dataclass(frozen=True, slots=True)
class Written:
    """A graph in the folder `place` of a bundle. weights: where the large ones stand. caches: its twins for narrow
    caches. bytes: of all these files. forms: of its static graphs.
    """

    graph: ir.Model
    place: str
    weights: dict[str, Weight]
    caches: dict[Narrow, str]
    bytes: int
    forms: StaticForms | None = None
    notes: tuple[str, ...] = ()
    """What is to be said of it."""

    @property
    def static(self) -> Buckets | None:
        """The sizes of its static graphs."""
        return None if self.forms is None else self.forms.sizes


def write_graphs(
    name: str, graph: ir.Model, known: Facts, order: Order, work: Path, done: Callable[[float], None]
) -> Written:
    """Write the graph of a part, and its twins. Raises ExportError for one that they cannot be made of."""
    place = "target" if name == "target" else f"drafters/{name}"
    folder = work / place
    weights, size = write_model(graph, folder, done)
    caches = write_cached_graphs(graph, folder / GRAPH)
    size += sum((folder / file).stat().st_size for file in caches.values())
    made = Written(graph, place, weights, caches, size)
    return with_static(made, graph, known, order, work) if order.static and not order.packed else made


def with_static(made: Written, graph: ir.Model, known: Facts, order: Order, work: Path) -> Written:
    """Write static graphs beside a graph that was written. graph: of stock operators, which they are made of: the same
    one, or another form of the same part, whose weights then stand beside.

    Raises ExportError for one that they cannot be made of.
    """
    folder = work / made.place
    files = {file: path.stat().st_size for file in (DATA, STATIC_DATA) if (path := folder / file).exists()}
    sizes = buckets_of(graph, known, order.static_rows, order.static_contexts)
    sizes = msgspec.structs.replace(sizes, type=order.static_type)
    forms = store_forms(graph, sizes, folder, made.graph)
    more = sum((folder / file).stat().st_size for file in (DATA, STATIC_DATA) if (folder / file).exists())
    written = more - sum(files.values()) + write_static(forms, folder)
    notes = notes_on(known, order.static_contexts)
    if forms.sizes.weights is not None:
        read, own = show_size(forms.sizes.weights), show_size((folder / STATIC_DATA).stat().st_size)
        notes += (f"its static graphs read {read} of weights, of which {own} stand beside its own",)
    return replace(made, forms=forms, bytes=made.bytes + written, notes=notes)


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
    if name == "target" or part.streams or (part.static is not None and not order.packed):
        return part, made.bytes
    part, more = with_drafts(part, made.graph, work)
    check_drafts(name, work, part)
    return part, made.bytes + more
