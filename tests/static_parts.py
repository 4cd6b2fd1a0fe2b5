"""Random models with static graphs, and how they are opened: on the CPU, beside the graph that they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
from family_models import write_family
from graph_runner import make_runner

from paceline.export.finishing import Written, write_graphs
from paceline.export.order import Order
from paceline.export.report import Facts, part_of
from paceline.export.storage import Storage, layout_of, store
from paceline.export.weights import GRAPH
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.static import StaticGraphs

ROWS, CONTEXTS = (1, 4), (24, 64)


@dataclass(frozen=True)
class StaticPart:
    """A part in a folder."""

    folder: Path
    part: Part
    made: Written
    facts: Facts

    def opened(self, path: str, device: str = "cpu") -> Graph:
        """One of its graphs."""
        return Graph(self.folder / path, find_device(device), 1, self.part)

    def static(
        self, context: int, scratch: int = 0, widest: int = 16, chunk: int = 32, device: str = "cpu"
    ) -> Model:
        """What runs its static graphs."""
        graphs = StaticGraphs(self.part, partial(self.opened, device=device))
        return Model(graphs, self.part, context, widest, chunk, scratch)

    def plain(self, context: int, scratch: int = 0, widest: int = 16, chunk: int = 32) -> Model:
        """What runs its own graph."""
        return Model(self.opened(self.part.graph), self.part, context, widest, chunk, scratch)


def make_part(
    family: str,
    folder: Path,
    quant: str = "none",
    taps: Sequence[str] = (),
    rows: tuple[int, ...] = ROWS,
    contexts: tuple[int, ...] = CONTEXTS,
    static_type: Literal["fp32", "fp16"] = "fp32",
) -> StaticPart:
    """A random model of a family, written as the exporter does it."""
    runner = make_runner(write_family(family, folder / "checkpoint"), taps=list(taps))
    order = Order(
        "nowhere",
        quant=quant,
        profile="static",
        static_rows=rows,
        static_contexts=contexts,
        static_type=static_type,
    )  # type: ignore[arg-type]
    storage = Storage(quant, 32 if quant != "none" else None, "portable")  # type: ignore[arg-type]
    store(runner.graph, "float32", storage, lambda *_: None)
    made = write_graphs("target", runner.graph, runner.facts, order, folder, lambda _: None)
    path, layout = f"{made.place}/{GRAPH}", layout_of(made.graph.graph)
    part = part_of(path, "llama", runner.facts, runner.loaded, order, tuple(taps), 0.0, made.weights, layout)
    return StaticPart(folder, msgspec.structs.replace(part, static=made.static), made, runner.facts)
