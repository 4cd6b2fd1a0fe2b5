"""EAGLE-3 (arXiv 2503.01840, with the norms of 3.1): one layer that drafts level after level from its own states."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_ir as ir

from paceline.export.heads.beam import Beam
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
    """The graph that drafts `depth` levels: a level's state and the token that was chosen there are the next pair."""
    state, token = w.input("state", ir.DataType.FLOAT, 1, w.config.hidden), w.input("token", INTEGER, 1)
    noise, rows = w.noise(depth)
    past = Past.of(w)
    scores, best = w.chosen(w.logits(state), rows[0])
    found, chosen = [scores], [best]
    levels, flat = _Levels(w, past, depth - 1, 1), state
    for step in range(1, depth):
        mask = w.constant(f"mask.{step}", np.tri(step, dtype=np.bool_))
        flat = levels.states(best, flat, mask)
        scores, best = w.chosen(w.logits(flat), rows[step])
        found.append(scores)
        chosen.append(best)
    outputs = w.drafted(w.joined(chosen, 0, INTEGER), w.joined(found, 0))
    return w.model([state, token, noise, *past.inputs], outputs)


def tree(w: HeadWriter, depth: int, width: int) -> ir.Model:
    """The graph that drafts a tree: a parent sees the cache, and of the drafted rows those of its own path."""
    state, token = w.input("state", ir.DataType.FLOAT, 1, w.config.hidden), w.input("token", INTEGER, 1)
    beam, past = Beam(w, depth, width), Past.of(w)
    beam.expand(w.logits(state))
    levels, flat = _Levels(w, past, depth - 1, width), state
    itself = w.constant("itself", np.eye(width, dtype=np.bool_))
    path = itself
    for step in range(1, depth):
        slots, rows = beam.best()
        mask = path
        if step > 1:
            path = w.joined([beam.take(path, slots, ir.DataType.BOOL), itself], 1, ir.DataType.BOOL)
            # What earlier rows see again is not looked at.
            before = w.constant(f"before.{step}", np.eye((step - 1) * width, step * width, dtype=np.bool_))
            mask = w.joined([before, path], 0, ir.DataType.BOOL)
        flat = levels.states(rows, beam.take(flat, slots), mask)
        beam.expand(w.logits(flat))
    return w.model([state, token, *beam.inputs, *past.inputs], beam.outputs())


class _Levels:
    """The layer over drafted rows, `width` a level. Attention takes those of all levels so far, for only committed rows
    stand in the cache."""

    def __init__(self, w: HeadWriter, past: Past, steps: int, width: int) -> None:
        self._w, self._past, self._rows, self._width = w, past, steps * width, width
        self._pairs: list[ir.Value] = []
        if steps:
            offsets = w.constant("offsets", np.repeat(np.arange(steps, dtype=np.int64), width))
            self._positions = w.node("Add", [past.length, offsets], (self._rows,), dtype=INTEGER)
            self._turn = angles(w, self._positions, self._rows)

    def states(self, chosen: ir.Value, given: ir.Value, mask: ir.Value) -> ir.Value:
        """[width, H] of the next level: rows of the vocabulary, each beside the state that it was chosen with."""
        w, c, width = self._w, self._w.config, self._width
        given, pair = entered(w, partial(w.chosen_embedded, chosen), given)
        self._pairs.append(pair)
        rows = len(self._pairs) * width
        turn = self._upto(self._turn[0], rows, 1), self._upto(self._turn[1], rows, 1)
        positions = self._upto(self._positions, rows, 0)
        seen = attended(w, w.joined(self._pairs, 1), turn, self._past, mask, positions)[0]
        last = w.whole(f"row.{rows}", *range(rows - width, rows))
        seen = w.node("Gather", [seen, last], (1, width, c.heads * c.head_dim), {"axis": 1})
        seen = w.node("Squeeze", [seen, w.whole("zero", 0)], (width, c.heads * c.head_dim))
        return finished(w, seen, given)

    def _upto(self, x: ir.Value, rows: int, axis: int) -> ir.Value:
        """The first rows of a value that has all."""
        if rows == self._rows:
            return x
        assert x.shape is not None
        w, shape = self._w, list(x.shape.dims)
        shape[axis] = rows
        cuts = [w.whole("zero", 0), w.whole(f"upto.{rows}", rows), w.whole(f"axis.{axis}", axis)]
        return w.node("Slice", [x, *cuts], shape, dtype=x.dtype or INTEGER)
