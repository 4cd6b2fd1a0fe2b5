"""Clover (arXiv 2405.00263, 2408.00264): a layer reads, one attention decoder takes chosen tokens into the state."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from paceline.export.heads.beam import Beam
from paceline.export.heads.config import HeadConfig, Shapes
from paceline.export.heads.head import Head
from paceline.export.heads.layer import JOINS, Past, layer_shapes
from paceline.export.heads.writer import INTEGER, HeadWriter

NORM = "decoder.norm.weight"


def shapes(c: HeadConfig) -> Shapes:
    """Weights of the checkpoint that not every head has."""
    inside = c.heads * c.head_dim
    found = {**layer_shapes(c), NORM: (c.hidden,), "decoder.o.weight": (c.hidden, inside)}
    found |= {f"decoder.{part}.weight": (inside, c.hidden) for part in "qkv"}
    found |= {f"decoder.{part}_norm.weight": (c.head_dim,) for part in "qk"}
    return found | {f"levels.{level}.weight": (c.hidden, c.hidden) for level in range(c.depth)}


def joins(head: Head) -> Mapping[str, tuple[str, ...]]:
    """Matrices of the graphs that not every head has."""
    own = ["decoder.q", "decoder.o", *(f"levels.{level}" for level in range(head.config.depth))]
    kv = ("decoder.k.weight", "decoder.v.weight")
    return {**JOINS, "decoder.kv": kv, **{name: (f"{name}.weight",) for name in own}}


def draft(w: HeadWriter, depth: int) -> ir.Model:
    """The graph that drafts `depth` levels; what the cache holds is in the state already."""
    given, token = w.input("state", ir.DataType.FLOAT, 1, w.config.hidden), w.input("token", INTEGER, 1)
    noise, rows = w.noise(depth)
    state, past, found, chosen = given, Past.of(w).inputs, list[ir.Value](), list[ir.Value]()
    for level in range(depth):
        if level:
            state = _taken(w, state, w.chosen_embedded(chosen[-1]), 1)
        scores, best = w.chosen(_said(w, state, level), rows[level])
        found.append(scores)
        chosen.append(best)
    outputs = w.drafted(w.joined(chosen, 0, INTEGER), w.joined(found, 0))
    return w.model([given, token, noise, *past], outputs)


def tree(w: HeadWriter, depth: int, width: int) -> ir.Model:
    """The graph that drafts a tree: a parent has a state of its own."""
    given, token = w.input("state", ir.DataType.FLOAT, 1, w.config.hidden), w.input("token", INTEGER, 1)
    beam, past, state = Beam(w, depth, width), Past.of(w).inputs, given
    for level in range(depth):
        if level:
            slots, rows = beam.best()
            state = _taken(w, beam.take(state, slots), w.chosen_embedded(rows), width)
        beam.expand(_said(w, state, level))
    return w.model([given, token, *beam.inputs, *past], beam.outputs())


def _said(w: HeadWriter, state: ir.Value, level: int) -> ir.Value:
    """Logits of a level."""
    bent = w.silu(w.product(state, f"levels.{level}"))
    return w.logits(w.node("Add", [state, bent], state.shape))


def _taken(w: HeadWriter, state: ir.Value, token: ir.Value, rows: int) -> ir.Value:
    """States [rows, H] after embedded tokens: each head takes its value by how alike query and key are."""
    c = w.config
    inside, split, one = c.heads * c.head_dim, (rows, c.heads, c.head_dim), (rows, c.heads, 1)
    sizes = w.whole("heads", -1, c.heads, c.head_dim)
    both = w.nodes(
        "Split", [w.product(token, "decoder.kv")], [(rows, inside)] * 2, {"axis": -1, "num_outputs": 2}
    )
    parts = [w.product(state, "decoder.q", norm=NORM), *both]
    query, key, value = (w.node("Reshape", [part, sizes], split) for part in parts)
    query, key = (w.norm(x, f"decoder.{name}_norm.weight") for x, name in ((query, "q"), (key, "k")))
    alike = w.node("ReduceMean", [w.node("Mul", [query, key], split), w.whole("last", -1)], one)
    seen = w.node("Mul", [alike, value], split)
    flat = w.node("Reshape", [seen, w.whole("inside", -1, inside)], (rows, inside))
    return w.product(flat, "decoder.o", residual=state)
