"""Every way to draft that a head may have: what its checkpoint holds and how its graphs are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from paceline.export.heads import eagle, eagle3, hydra, medusa
from paceline.export.heads.config import TRAINED_HERE, HeadConfig, Method, Shapes, Style
from paceline.export.heads.writer import HeadWriter


@dataclass(frozen=True, slots=True)
class Way:
    """layers: attention layers, each with a cache. embeds: whether it looks at tokens.

    shapes: weights of the checkpoint that not every head has. joins: the matrices of the graphs that are made of them,
    each of weights side by side. read: the graph that reads. draft: the graph that drafts so many levels. style: of
    those that are trained here.
    """

    layers: int
    embeds: bool
    shapes: Callable[[HeadConfig], Shapes]
    joins: Callable[[HeadConfig], Mapping[str, tuple[str, ...]]]
    read: Callable[[HeadWriter], ir.Model]
    draft: Callable[[HeadWriter, int], ir.Model]
    style: Style = TRAINED_HERE


METHODS: dict[Method, Way] = {
    "eagle": Way(1, True, eagle.shapes, eagle3.joins, eagle3.read, eagle3.draft, eagle.STYLE),
    "eagle3": Way(1, True, eagle3.shapes, eagle3.joins, eagle3.read, eagle3.draft),
    "hydra": Way(1, True, hydra.shapes, hydra.joins, hydra.read, hydra.draft),
    "medusa": Way(0, False, medusa.shapes, medusa.joins, medusa.read, medusa.draft),
}
