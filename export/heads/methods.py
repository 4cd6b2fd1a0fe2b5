"""Every way to draft that a head may have: what its checkpoint holds and how its graphs are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from paceline.export.heads import clover, dflash, eagle, eagle3, falcon, hydra, kangaroo, medusa
from paceline.export.heads.config import TRAINED_HERE, HeadConfig, Method, Shapes, Style
from paceline.export.heads.head import Head
from paceline.export.heads.writer import HeadWriter


@dataclass(frozen=True, slots=True)
class Way:
    """layers: attention layers, each with a cache, by the configuration. embeds: whether it looks at tokens.

    shapes: weights of the checkpoint that not every head has. joins: the matrices of the graphs that are made of them,
    each of weights side by side. read: the graph that reads. draft: the graph that drafts so many levels; None
    where the target's first layers do. tree: the graph that drafts a tree of so many levels, each of so many parents;
    None where there is none. product: whether no level knows what another one chose: its law is the same for all
    parents. style: of those that are trained here.
    """

    layers: Callable[[HeadConfig], int]
    embeds: bool
    shapes: Callable[[HeadConfig], Shapes]
    joins: Callable[[Head], Mapping[str, tuple[str, ...]]]
    read: Callable[[HeadWriter], ir.Model]
    draft: Callable[[HeadWriter, int], ir.Model] | None
    tree: Callable[[HeadWriter, int, int], ir.Model] | None
    product: bool = False
    style: Style = TRAINED_HERE


def _one(_c: HeadConfig) -> int:
    return 1


def _none(_c: HeadConfig) -> int:
    return 0


def _own(c: HeadConfig) -> int:
    return c.layers


METHODS: dict[Method, Way] = {
    "eagle": Way(
        _one, True, eagle.shapes, eagle3.joins, eagle3.read, eagle3.draft, eagle3.tree, style=eagle.STYLE
    ),
    "eagle3": Way(_one, True, eagle3.shapes, eagle3.joins, eagle3.read, eagle3.draft, eagle3.tree),
    "hydra": Way(_own, True, hydra.shapes, hydra.joins, hydra.read, hydra.draft, hydra.tree),
    "medusa": Way(_none, False, medusa.shapes, medusa.joins, medusa.read, medusa.draft, None, product=True),
    "dflash": Way(_own, True, dflash.shapes, dflash.joins, dflash.read, dflash.draft, None, product=True),
    "clover": Way(_one, True, clover.shapes, clover.joins, eagle3.read, clover.draft, clover.tree),
    "falcon": Way(_one, True, falcon.shapes, falcon.joins, eagle3.read, falcon.draft, None),
    "kangaroo": Way(
        _one, False, kangaroo.shapes, kangaroo.joins, kangaroo.read, None, None, style=kangaroo.STYLE
    ),
}
