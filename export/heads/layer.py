"""The decoder layer of a head: it attends from pairs of a token and a hidden state to those before them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from paceline.export.heads.config import HeadConfig, Shapes
from paceline.export.heads.writer import FINAL, FUSE, INTEGER, HeadWriter
from paceline.export.positions import plain_frequencies
from paceline.runtime.ops import tree_attention as attention

FREQUENCIES = "frequencies"
JOINS = {
    "layer.qkv": ("layer.q.weight", "layer.k.weight", "layer.v.weight"),
    "layer.o": ("layer.o.weight",),
    "layer.gate_up": ("layer.gate.weight", "layer.up.weight"),
    "layer.down": ("layer.down.weight",),
}
"""Matrices of the graphs, and the weights of the checkpoint that stand in each side by side."""
VECTORS = ("token_norm.weight", "state_norm.weight", "mlp_norm.weight", FINAL)


def layer_shapes(c: HeadConfig) -> Shapes:
    """Weights of the layer in the checkpoint, with the norms before and behind it."""
    return {**matrix_shapes(c, 2 * c.hidden), **dict.fromkeys(VECTORS, (c.hidden,))}


def matrix_shapes(c: HeadConfig, given: int, place: str = "layer") -> Shapes:
    """Matrices of a layer of this name whose attention reads so many columns."""
    return {
        **attention_shapes(c, given, place),
        f"{place}.gate.weight": (c.inner, c.hidden),
        f"{place}.up.weight": (c.inner, c.hidden),
        f"{place}.down.weight": (c.hidden, c.inner),
    }


def attention_shapes(c: HeadConfig, given: int, place: str = "layer") -> Shapes:
    """Those of its attention alone."""
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    return {
        f"{place}.q.weight": (queries, given),
        f"{place}.k.weight": (keys, given),
        f"{place}.v.weight": (keys, given),
        f"{place}.o.weight": (c.hidden, queries),
    }


def layer_frequencies(c: HeadConfig) -> np.ndarray:
    """float32[head_dim / 2]."""
    return plain_frequencies({"rope_theta": c.rope_theta}, c.head_dim // 2)


@dataclass(frozen=True, slots=True)
class Past:
    """The inputs that say what the rows before hold: how many, keys and values [kv_heads, S, head_dim]."""

    length: ir.Value
    keys: ir.Value
    values: ir.Value

    @classmethod
    def of(cls, w: HeadWriter, number: int = 0, length: ir.Value | None = None) -> Past:
        """New inputs of a layer; all layers have one length."""
        shape = (w.config.kv_heads, "S", w.config.head_dim)
        keys, values = (w.input(f"cache_{part}.{number}", ir.DataType.FLOAT, *shape) for part in "kv")
        return cls(length or w.input("past_len", INTEGER, 1), keys, values)

    @property
    def inputs(self) -> list[ir.Value]:
        """All of them."""
        return [self.length, self.keys, self.values]


def entered(w: HeadWriter, embedded: Callable[[], ir.Value], given: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Of pairs of tokens, embedded, and states [T, H]: what the layer adds to [T, H], and its products.

    These are queries, keys and values side by side, [1, T, (heads + 2 kv_heads) head_dim].
    """
    if w.style.entry == "joined":
        x = given = w.product(w.joined([embedded(), given], -1), FUSE, bias="fc.bias")
    else:
        x = w.norm(given, "state_norm.weight")
        if w.style.entry == "pair":
            x = w.joined([w.norm(embedded(), "token_norm.weight"), x], -1)
    return given, w.first(w.product(x, "layer.qkv"), "zero", 0)


def angles(w: HeadWriter, positions: ir.Value, rows: int | str) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines of the rotation of rows at these positions [T], [1, T, head_dim / 2]."""
    shape = (1, rows, w.config.head_dim // 2)
    x = w.node("Unsqueeze", [positions, w.whole("ends", 0, 2)], (1, rows, 1), dtype=INTEGER)
    x = w.node("Cast", [x], (1, rows, 1), {"to": int(ir.DataType.FLOAT)})
    x = w.node("Mul", [x, w.vector(FREQUENCIES)], shape)
    return w.node("Cos", [x], shape), w.node("Sin", [x], shape)


def attended(
    w: HeadWriter,
    qkv: ir.Value,
    turn: tuple[ir.Value, ir.Value],
    past: Past,
    mask: ir.Value,
    positions: ir.Value,
    norms: Sequence[ir.Value | None] = (None, None),
) -> Sequence[ir.Value]:
    """What the rows see, [1, T, heads * head_dim], and their keys and values [kv_heads, T, head_dim].

    norms: of queries and keys, [head_dim] each.
    """
    c = w.config
    assert qkv.shape is not None
    rows = qkv.shape.dims[1]
    cache = (c.kv_heads, rows, c.head_dim)
    return w.nodes(
        attention.ROTARY_NAME,
        [qkv, *turn, *norms, past.keys, past.values, past.length, mask, positions],
        [(1, rows, c.heads * c.head_dim), cache, cache],
        {
            "scale": float(c.head_dim**-0.5),
            "window": 0,
            "softcap": 0.0,
            "q_heads": c.heads,
            "kv_heads": c.kv_heads,
            "epsilon": c.epsilon,
            "interleaved": 0,
        },
        domain=attention.DOMAIN,
    )


def finished(w: HeadWriter, seen: ir.Value, given: ir.Value) -> ir.Value:
    """The state behind the layer of rows that saw `seen` and came with `given`."""
    x = w.product(seen, "layer.o", residual=given)
    if w.style.feed_forward:
        x = w.product(w.gated(x, "layer.gate_up", "mlp_norm.weight"), "layer.down", residual=x)
    return w.norm(x, FINAL) if w.style.last_norm == "state" else x


def reading(w: HeadWriter, logits: bool = False) -> ir.Model:
    """The graph that reads pairs: their states, or logits, where asked for, and their keys and values."""
    c = w.config
    token_ids, positions = w.input("token_ids", INTEGER, "T"), w.input("positions", INTEGER, "T")
    features = w.input("features", ir.DataType.FLOAT, "T", len(c.taps) * c.hidden)
    mask, rows = w.input("tree_mask", ir.DataType.BOOL, "T", "W"), w.input("rows", INTEGER, "R")
    past = Past.of(w)
    given, qkv = entered(w, lambda: w.embedded(w.own_rows(token_ids)), w.fused(features))
    seen, new_k, new_v = attended(w, qkv, angles(w, positions, "T"), past, mask, positions)
    # Only keys and values are wanted of the other rows.
    seen = w.node("Squeeze", [seen, w.whole("zero", 0)], ("T", c.heads * c.head_dim))
    state = finished(w, w.rows(seen, rows), w.rows(given, rows))
    if logits:
        state = w.logits(state)
    for value, name in ((state, "logits" if logits else "state"), (new_k, "new_k.0"), (new_v, "new_v.0")):
        value.name = name
    inputs = [token_ids, features, positions, mask, rows, *past.inputs]
    return w.model(inputs, [state, new_k, new_v])
