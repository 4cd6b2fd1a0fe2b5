"""Falcon (arXiv 2412.12639): a step drafts TOGETHER levels at once from the pairs of as many levels before.

The first level is read, and beside it a mask stands for its token. In the steps that follow, rows of one step see each
other, later ones too, and what a cell with the gates of an LSTM holds after all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from paceline.export.heads.config import TOGETHER, HeadConfig, Shapes
from paceline.export.heads.dflash import MASK
from paceline.export.heads.drafted import DraftedRows
from paceline.export.heads.head import Head
from paceline.export.heads.layer import JOINS, Past, layer_shapes
from paceline.export.heads.writer import INTEGER, HeadWriter


def shapes(c: HeadConfig) -> Shapes:
    """Weights of the checkpoint that not every head has."""
    return {**layer_shapes(c), MASK: (c.hidden,), "cell.weight": (3 * c.hidden, 2 * c.hidden)}


def joins(_head: Head) -> Mapping[str, tuple[str, ...]]:
    """Matrices of the graphs that not every head has."""
    return {**JOINS, "cell": ("cell.weight",)}


def draft(w: HeadWriter, depth: int) -> ir.Model:
    """The graph that drafts `depth` levels."""
    c = w.config
    given, token = w.input("state", ir.DataType.FLOAT, 1, c.hidden), w.input("token", INTEGER, 1)
    noise = w.input("noise", ir.DataType.FLOAT, depth, c.vocab)
    past, state, held = Past.of(w), given, None
    sizes = [min(TOGETHER, depth - level) for level in range(0, depth, TOGETHER)]
    noises = _split(w, noise, sizes)
    rows = DraftedRows(w, past, range(TOGETHER * (len(sizes) - 1)), TOGETHER)
    found, chosen = list[ir.Value](), list[ir.Value]()
    for step, size in enumerate(sizes):
        if step:
            tokens = w.chosen_embedded(chosen[-1])
            told, held = _celled(w, tokens, state, held)
            sees = np.kron(np.tri(step), np.ones((TOGETHER, TOGETHER))).astype(np.bool_)
            state = rows.states(
                partial(w.chosen_embedded, chosen[-1]), told, w.constant(f"mask.{step}", sees)
            )
        elif size > 1:
            state = w.joined([state, _beside(w, past, state)], 0)
        scores, best = w.chosen(w.logits(_upper(w, state, size)), noises[step])
        found.append(scores)
        chosen.append(best)
    outputs = w.drafted(w.joined(chosen, 0, INTEGER), w.joined(found, 0))
    return w.model([given, token, noise, *past.inputs], outputs)


def _beside(w: HeadWriter, past: Past, state: ir.Value) -> ir.Value:
    """States of the levels that are drafted beside the first one, whose token is not known yet."""
    count = TOGETHER - 1
    masks = w.joined([w.first(w.vector(MASK), "zero", 0)] * count, 0)
    told, _ = _celled(w, masks, w.joined([state] * count, 0), None)
    sees = w.constant("mask.0", np.ones((count, count), np.bool_))
    return DraftedRows(w, past, range(count), count).states(lambda: masks, told, sees)


def _celled(
    w: HeadWriter, tokens: ir.Value, state: ir.Value, held: ir.Value | None
) -> tuple[ir.Value, ir.Value]:
    """States [R, H] with what the cell shows of itself behind all R pairs, and what it holds then, [1, H].

    held: what it held before; None: nothing.
    """
    assert state.shape is not None
    shape = tuple(state.shape.dims)
    normed = [w.norm(tokens, "token_norm.weight"), w.norm(state, "state_norm.weight")]
    gates = w.product(w.joined(normed, -1), "cell")
    new, keep, show = w.nodes("Split", [gates], [shape] * 3, {"axis": -1, "num_outputs": 3})
    single = [1] * int(str(shape[0]))
    news, keeps = (_split(w, w.node(op, [x], shape), single) for op, x in (("Tanh", new), ("Sigmoid", keep)))
    for one, kept in zip(news, keeps, strict=True):
        change = one if held is None else w.node("Sub", [one, held], one.shape)
        held = w.node("Sub", [one, w.node("Mul", [kept, change], one.shape)], one.shape)
    assert held is not None
    shown = w.node("Mul", [w.node("Sigmoid", [show], shape), held], shape)
    return w.node("Add", [state, shown], shape), held


def _split(w: HeadWriter, x: ir.Value, sizes: Sequence[int]) -> Sequence[ir.Value]:
    """So many rows each, of which the last may be fewer than the others."""
    if len(sizes) == 1:
        return [x]
    assert x.shape is not None
    shapes = [(size, *x.shape.dims[1:]) for size in sizes]
    return w.nodes("Split", [x], shapes, {"axis": 0, "num_outputs": len(sizes)})


def _upper(w: HeadWriter, x: ir.Value, count: int) -> ir.Value:
    """The first rows of [R, H]."""
    assert x.shape is not None
    if x.shape.dims[0] == count:
        return x
    cuts = [w.whole("zero", 0), w.whole("count", count), w.whole("axis.0", 0)]
    return w.node("Slice", [x, *cuts], (count, *x.shape.dims[1:]))
