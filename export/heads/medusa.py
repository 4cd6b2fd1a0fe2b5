"""Medusa (arXiv 2401.10774) with one head for all levels: each level bends the state in its own way, all at once."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from paceline.export.heads.config import HeadConfig, Shapes
from paceline.export.heads.head import Head
from paceline.export.heads.writer import INTEGER, HeadWriter


def shapes(c: HeadConfig) -> Shapes:
    """Weights of the checkpoint that not every head has."""
    return {f"levels.{level}.weight": (c.hidden, c.hidden) for level in range(c.depth)}


def joins(head: Head) -> Mapping[str, tuple[str, ...]]:
    """Matrices of the graphs that not every head has."""
    names = [f"levels.{level}{end}" for level in range(head.config.depth) for end in ("", ".head")]
    return {name: (f"{name}.weight",) for name in names}


def read(w: HeadWriter) -> ir.Model:
    """The graph that reads: no row needs another, and no token is looked at."""
    token_ids, rows = w.input("token_ids", INTEGER, "T"), w.input("rows", INTEGER, "R")
    features = w.input("features", ir.DataType.FLOAT, "T", len(w.config.taps) * w.config.hidden)
    state = w.fused(w.rows(features, rows))
    state.name = "state"
    return w.model([token_ids, features, rows], [state])


def draft(w: HeadWriter, depth: int) -> ir.Model:
    """The graph that drafts `depth` levels."""
    c = w.config
    state, token = w.input("state", ir.DataType.FLOAT, 1, c.hidden), w.input("token", INTEGER, 1)
    noise = w.input("noise", ir.DataType.FLOAT, depth, c.vocab)
    own = w.style.own_heads
    bent = [
        w.product(state, f"levels.{level}", bias=f"levels.{level}.bias" if own else None)
        for level in range(depth)
    ]
    turned = w.silu(w.joined(bent, 0))
    levels = w.node("Add", [turned, state], turned.shape)
    scores, best = w.chosen(_own_logits(w, levels, depth) if own else w.logits(levels), noise)
    return w.model([state, token, noise], w.drafted(best, scores))


def _own_logits(w: HeadWriter, levels: ir.Value, depth: int) -> ir.Value:
    """Each level by its own LM head."""
    rows = [levels]
    if depth > 1:
        attributes = {"axis": 0, "num_outputs": depth}
        rows = list(w.nodes("Split", [levels], [(1, w.config.hidden)] * depth, attributes))
    return w.joined([w.product(row, f"levels.{level}.head") for level, row in enumerate(rows)], 0)
