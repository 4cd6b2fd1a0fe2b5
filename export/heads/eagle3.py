"""EAGLE-3 (arXiv 2503.01840, with the norms of 3.1): one layer that drafts level after level from its own states."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_ir as ir

from paceline.export.heads.beam import Beam
from paceline.export.heads.config import HeadConfig, Shapes
from paceline.export.heads.drafted import DraftedRows
from paceline.export.heads.head import Head
from paceline.export.heads.layer import JOINS, Past, layer_shapes, reading
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
    levels, flat = DraftedRows(w, past, range(depth - 1), 1), state
    for step in range(1, depth):
        mask = w.constant(f"mask.{step}", np.tri(step, dtype=np.bool_))
        flat = levels.states(partial(w.chosen_embedded, best), flat, mask)
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
    levels, flat = DraftedRows(w, past, np.repeat(range(depth - 1), width).tolist(), width), state
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
        flat = levels.states(partial(w.chosen_embedded, rows), beam.take(flat, slots), mask)
        beam.expand(w.logits(flat))
    return w.model([state, token, *beam.inputs, *past.inputs], beam.outputs())
