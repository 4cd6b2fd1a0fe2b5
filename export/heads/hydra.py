"""Hydra++ (arXiv 2402.05109): a layer reads, and each level sees the tokens that were chosen before it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from paceline.export.heads.config import HeadConfig, Shapes
from paceline.export.heads.layer import JOINS, Past, layer_shapes, reading
from paceline.export.heads.writer import INTEGER, HeadWriter


def shapes(c: HeadConfig) -> Shapes:
    """Weights of the checkpoint that not every head has."""
    found = layer_shapes(c)
    for level in range(c.depth):
        found[f"levels.{level}.weight"] = c.hidden, (level + 1) * c.hidden
        found[f"levels.{level}.out.weight"] = c.hidden, c.hidden
    return found


def joins(c: HeadConfig) -> Mapping[str, tuple[str, ...]]:
    """Matrices of the graphs that not every head has."""
    ends = [f"levels.{level}{end}" for level in range(c.depth) for end in ("", ".out")]
    return {**JOINS, **{name: (f"{name}.weight",) for name in ends}}


def read(w: HeadWriter) -> ir.Model:
    """The graph that reads."""
    return reading(w)


def draft(w: HeadWriter, depth: int) -> ir.Model:
    """The graph that drafts `depth` levels; what the cache holds is in the state already."""
    c = w.config
    state, token = w.input("state", ir.DataType.FLOAT, 1, c.hidden), w.input("token", INTEGER, 1)
    noise, rows = w.noise(depth)
    past = Past.of(w)
    path, found, chosen = [state], [], []
    for level in range(depth):
        bent = w.silu(w.product(w.joined(path, 1), f"levels.{level}"))
        scores, best = w.chosen(w.logits(w.product(bent, f"levels.{level}.out", residual=state)), rows[level])
        found.append(scores)
        chosen.append(best)
        if level + 1 < depth:
            path.append(w.chosen_embedded(best))
    outputs = w.drafted(w.joined(chosen, 0, INTEGER), w.joined(found, 0))
    return w.model([state, token, noise, *past.inputs], outputs)
