"""Hydra++ (arXiv 2402.05109): a layer reads, and each level sees the tokens that were chosen before it.

Published heads may lack the layer (Hydra). A level of theirs is a few residual blocks, and sees the root besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from paceline.export.heads import medusa
from paceline.export.heads.beam import Beam
from paceline.export.heads.config import HeadConfig, Shapes
from paceline.export.heads.head import Head
from paceline.export.heads.layer import JOINS, Past, layer_shapes, reading
from paceline.export.heads.writer import INTEGER, HeadWriter


def shapes(c: HeadConfig) -> Shapes:
    """Weights of the checkpoint that not every head has."""
    found = layer_shapes(c)
    for level in range(c.depth):
        found[f"levels.{level}.weight"] = c.hidden, (level + 1) * c.hidden
        found[f"levels.{level}.out.weight"] = c.hidden, c.hidden
    return found


def block_shapes(c: HeadConfig, blocks: int) -> Shapes:
    """Weights of the levels of a published head."""
    found: Shapes = {}
    for level in range(c.depth):
        for name in ("linear", "residual"):
            found[f"levels.{level}.{name}.weight"] = c.hidden, (level + 2) * c.hidden
            found[f"levels.{level}.{name}.bias"] = (c.hidden,)
        for block in range(1, blocks):
            found[f"levels.{level}.blocks.{block}.weight"] = c.hidden, c.hidden
            found[f"levels.{level}.blocks.{block}.bias"] = (c.hidden,)
        found[f"levels.{level}.head.weight"] = c.vocab, c.hidden
        found[f"levels.{level}.head.bias"] = (c.vocab,)
    return found


def joins(head: Head) -> Mapping[str, tuple[str, ...]]:
    """Matrices of the graphs that not every head has."""
    own = [name for name in head.weights if name.startswith("levels.") and name.endswith(".weight")]
    return {**JOINS, **{name.removesuffix(".weight"): (name,) for name in own}}


def read(w: HeadWriter) -> ir.Model:
    """The graph that reads."""
    return reading(w) if w.config.layers else medusa.read(w)


def draft(w: HeadWriter, depth: int) -> ir.Model:
    """The graph that drafts `depth` levels; what the cache holds is in the state already."""
    c = w.config
    state, token = w.input("state", ir.DataType.FLOAT, 1, c.hidden), w.input("token", INTEGER, 1)
    noise, rows = w.noise(depth)
    past = Past.of(w).inputs if c.layers else []
    path, found, chosen = [state], [], []
    if w.style.blocks:
        path.append(w.embedded(w.own_rows(token)))
    for level in range(depth):
        scores, best = w.chosen(_said(w, path, f"levels.{level}"), rows[level])
        found.append(scores)
        chosen.append(best)
        if level + 1 < depth:
            path.append(w.chosen_embedded(best))
    outputs = w.drafted(w.joined(chosen, 0, INTEGER), w.joined(found, 0))
    return w.model([state, token, noise, *past], outputs)


def tree(w: HeadWriter, depth: int, width: int) -> ir.Model:
    """The graph that drafts a tree: a parent has a path of its own."""
    c = w.config
    state, token = w.input("state", ir.DataType.FLOAT, 1, c.hidden), w.input("token", INTEGER, 1)
    beam, past, path = Beam(w, depth, width), Past.of(w).inputs if c.layers else [], [state]
    if w.style.blocks:
        path.append(w.embedded(w.own_rows(token)))
    for level in range(depth):
        if level:
            slots, rows = beam.best()
            path = [*(beam.take(x, slots) for x in path), w.chosen_embedded(rows)]
        beam.expand(_said(w, path, f"levels.{level}"))
    return w.model([state, token, *beam.inputs, *past], beam.outputs())


def _said(w: HeadWriter, path: Sequence[ir.Value], level: str) -> ir.Value:
    """Logits of a level that sees the state and the tokens of the path."""
    x = w.joined(path, 1)
    if not w.style.blocks:
        bent = w.silu(w.product(x, level))
        return w.logits(w.product(bent, f"{level}.out", residual=path[0]))
    bent = w.silu(w.product(x, f"{level}.linear", bias=f"{level}.linear.bias"))
    x = w.product(x, f"{level}.residual", residual=bent, bias=f"{level}.residual.bias")
    for block in range(1, w.style.blocks):
        bent = w.silu(w.product(x, f"{level}.blocks.{block}", bias=f"{level}.blocks.{block}.bias"))
        x = w.node("Add", [x, bent], x.shape)
    return w.product(x, f"{level}.head", bias=f"{level}.head.bias")
