"""EAGLE-3 (arXiv 2503.01840, with the norms of 3.1): one layer that drafts level after level from its own states."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_ir as ir

from paceline.export.heads.config import HeadConfig, Shapes
from paceline.export.heads.head import Head
from paceline.export.heads.layer import (
    JOINS,
    Past,
    angles,
    attended,
    entered,
    finished,
    layer_shapes,
    reading,
)
from paceline.export.heads.writer import INTEGER, HeadWriter


def shapes(c: HeadConfig) -> Shapes:
    """Weights of the checkpoint that not every head has."""
    return layer_shapes(c)


def joins(_head: Head) -> Mapping[str, tuple[str, ...]]:
    """Matrices of the graphs that not every head has."""
    return JOINS


def read(w: HeadWriter) -> ir.Model:
    """The graph that reads."""
    return reading(w)


def draft(w: HeadWriter, depth: int) -> ir.Model:
    """The graph that drafts `depth` levels.

    A level's state and the token that was chosen there are the next pair. Attention takes the rows of all levels so
    far, for only committed rows stand in the cache.
    """
    c = w.config
    state, token = w.input("state", ir.DataType.FLOAT, 1, c.hidden), w.input("token", INTEGER, 1)
    noise, rows = w.noise(depth)
    past = Past.of(w)
    scores, best = w.chosen(w.logits(state), rows[0])
    found, chosen, pairs = [scores], [best], []
    steps = depth - 1
    if steps:
        offsets = w.constant("offsets", np.arange(steps, dtype=np.int64))
        positions = w.node("Add", [past.length, offsets], (steps,), dtype=INTEGER)
        turn = angles(w, positions, steps)
    flat = state
    for step in range(1, depth):
        given, pair = entered(w, partial(w.chosen_embedded, best), flat)
        pairs.append(pair)
        mask = w.constant(f"mask.{step}", np.tri(step, dtype=np.bool_))
        seen = attended(
            w,
            w.joined(pairs, 1),
            (_upto(w, turn[0], step, steps, 1), _upto(w, turn[1], step, steps, 1)),
            past,
            mask,
            _upto(w, positions, step, steps, 0),
        )[0]
        last = w.node(
            "Gather", [seen, w.whole(f"row.{step}", step - 1)], (1, 1, c.heads * c.head_dim), {"axis": 1}
        )
        last = w.node("Squeeze", [last, w.whole("zero", 0)], (1, c.heads * c.head_dim))
        flat = finished(w, last, given)
        scores, best = w.chosen(w.logits(flat), rows[step])
        found.append(scores)
        chosen.append(best)
    outputs = w.drafted(w.joined(chosen, 0, INTEGER), w.joined(found, 0))
    return w.model([state, token, noise, *past.inputs], outputs)


def _upto(w: HeadWriter, x: ir.Value, step: int, steps: int, axis: int) -> ir.Value:
    """The first rows of a value that has a row for each step."""
    if step == steps:
        return x
    assert x.shape is not None
    shape = list(x.shape.dims)
    shape[axis] = step
    cuts = [w.whole("zero", 0), w.whole(f"upto.{step}", step), w.whole(f"axis.{axis}", axis)]
    return w.node("Slice", [x, *cuts], shape, dtype=x.dtype or INTEGER)
