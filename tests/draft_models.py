"""The storyteller's draft model, as the laws run it."""

from __future__ import annotations

from functools import cache

from paceline.embedded import embedded_bundle
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model

VOCAB = 6
"""Small enough for n-grams to come back."""


@cache
def draft_graph() -> tuple[Graph, Part]:
    bundle = open_bundle(embedded_bundle())
    part = next(iter(bundle.manifest.drafters.values()))
    return Graph(bundle.path(part.graph), find_device("cpu"), 1, part), part


def draft_model(context: int = 512) -> Model:
    """The storyteller's draft model with a cache of its own; the laws use its first few token ids."""
    graph, part = draft_graph()
    return Model(graph, part, context, widest=4, scratch=48)
