"""DFlash (arXiv 2602.06036): a few layers draft a whole block in one pass, and what was read is keys and values.

Each layer has keys and values of every fused row of taps, which its cache keeps. The block is the root and as many
times a mask as there are levels; its rows see the prefix and each other, later ones too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from paceline.export.heads.config import HeadConfig, Shapes
from paceline.export.heads.head import Head
from paceline.export.heads.layer import Past, angles, attended, matrix_shapes
from paceline.export.heads.writer import FINAL, INTEGER, HeadWriter

MASK, CONTEXT = "mask", "context_norm.weight"


def shapes(c: HeadConfig) -> Shapes:
    """Weights of the checkpoint that not every head has."""
    found: Shapes = {MASK: (c.hidden,), CONTEXT: (c.hidden,), FINAL: (c.hidden,)}
    for number in range(c.layers):
        place = f"layers.{number}"
        found |= matrix_shapes(c, c.hidden, place)
        found |= {f"{place}.{norm}_norm.weight": (c.head_dim,) for norm in "qk"}
        found |= {f"{place}.{norm}_norm.weight": (c.hidden,) for norm in ("input", "mlp")}
    return found


def joins(head: Head) -> Mapping[str, tuple[str, ...]]:
    """Matrices of the graphs that not every head has; the rows that are read have no queries."""
    found = {}
    for number in range(head.config.layers):
        for name, parts in (("q", "q"), ("kv", "k v"), ("o", "o"), ("gate_up", "gate up"), ("down", "down")):
            place = f"layers.{number}"
            found[f"{place}.{name}"] = tuple(f"{place}.{part}.weight" for part in parts.split())
    return found


def read(w: HeadWriter) -> ir.Model:
    """The graph that reads: keys and values of the taps; the state is the token that the block begins with."""
    c = w.config
    token_ids, positions = w.input("token_ids", INTEGER, "T"), w.input("positions", INTEGER, "T")
    features = w.input("features", ir.DataType.FLOAT, "T", len(c.taps) * c.hidden)
    mask, rows = w.input("tree_mask", ir.DataType.BOOL, "T", "W"), w.input("rows", INTEGER, "R")
    pasts = _pasts(w)
    last = w.node("Gather", [token_ids, rows], ("R",), {"axis": 0}, INTEGER)
    state = w.embedded(w.own_rows(last))
    state.name = "state"
    context = w.norm(w.fused(features), CONTEXT)
    cos, sin = (_between(w, turn) for turn in angles(w, positions, "T"))
    outputs = [state]
    for number in range(c.layers):
        both = w.product(context, f"layers.{number}.kv")
        halves = [("T", c.kv_heads * c.head_dim)] * 2
        keys, values = w.nodes("Split", [both], halves, {"axis": -1, "num_outputs": 2})
        keys = w.norm(_heads(w, keys), f"layers.{number}.k_norm.weight")
        for value, name in ((_turned(w, keys, cos, sin), "k"), (_heads(w, values), "v")):
            row = w.node("Transpose", [value], (c.kv_heads, "T", c.head_dim), {"perm": [1, 0, 2]})
            row.name = f"new_{name}.{number}"
            outputs.append(row)
    return w.model([token_ids, features, positions, mask, rows, *_inputs(pasts)], outputs)


def draft(w: HeadWriter, depth: int) -> ir.Model:
    """The graph that drafts all levels."""
    c, size = w.config, depth + 1
    state, token = w.input("state", ir.DataType.FLOAT, 1, c.hidden), w.input("token", INTEGER, 1)
    noise = w.input("noise", ir.DataType.FLOAT, depth, c.vocab)
    pasts = _pasts(w)
    offsets = w.constant("offsets", np.arange(size, dtype=np.int64))
    positions = w.node("Add", [pasts[0].length, offsets], (size,), dtype=INTEGER)
    turn, everything = angles(w, positions, size), w.constant("all", np.ones((size, size), np.bool_))
    x = w.joined([state, *[w.first(w.vector(MASK), "zero", 0)] * depth], 0)
    for number, past in enumerate(pasts):
        place = f"layers.{number}"
        normed = w.norm(x, f"{place}.input_norm.weight")
        products = [w.product(normed, f"{place}.{name}") for name in ("q", "kv")]
        qkv = w.first(w.joined(products, -1), "zero", 0)
        norms = [w.vector(f"{place}.{name}_norm.weight") for name in "qk"]
        seen = attended(w, qkv, turn, past, everything, positions, norms)[0]
        seen = w.node("Squeeze", [seen, w.whole("zero", 0)], (size, c.heads * c.head_dim))
        x = w.product(seen, f"{place}.o", residual=x)
        bent = w.gated(x, f"{place}.gate_up", f"{place}.mlp_norm.weight")
        x = w.product(bent, f"{place}.down", residual=x)
    cuts = [w.whole("one", 1), w.whole("size", size), w.whole("zero", 0)]
    levels = w.norm(w.node("Slice", [x, *cuts], (depth, c.hidden)), FINAL)
    scores, best = w.chosen(w.logits(levels), noise)
    return w.model([state, token, noise, *_inputs(pasts)], w.drafted(best, scores))


def _pasts(w: HeadWriter) -> list[Past]:
    """The cache of every layer."""
    found = [Past.of(w)]
    return found + [Past.of(w, number, found[0].length) for number in range(1, w.config.layers)]


def _inputs(pasts: list[Past]) -> list[ir.Value]:
    return [pasts[0].length, *(value for past in pasts for value in (past.keys, past.values))]


def _heads(w: HeadWriter, x: ir.Value) -> ir.Value:
    """[T, kv_heads, head_dim]."""
    c = w.config
    sizes = w.whole("heads", -1, c.kv_heads, c.head_dim)
    return w.node("Reshape", [x, sizes], ("T", c.kv_heads, c.head_dim))


def _between(w: HeadWriter, turn: ir.Value) -> ir.Value:
    """Angles [1, T, head_dim / 2] as [T, 1, head_dim / 2]."""
    return w.node("Transpose", [turn], ("T", 1, w.config.head_dim // 2), {"perm": [1, 0, 2]})


def _turned(w: HeadWriter, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    """Rows [T, kv_heads, head_dim], their first half rotated against the second."""
    c = w.config
    half = ("T", c.kv_heads, c.head_dim // 2)
    a, b = w.nodes("Split", [x], [half, half], {"axis": -1, "num_outputs": 2})
    ends = []
    for op, left, right in (("Sub", a, b), ("Add", b, a)):
        pieces = [w.node("Mul", [left, cos], half), w.node("Mul", [right, sin], half)]
        ends.append(w.node(op, pieces, half))
    return w.node("Concat", ends, ("T", c.kv_heads, c.head_dim), {"axis": -1})
