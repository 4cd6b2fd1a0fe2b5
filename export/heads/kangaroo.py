"""Kangaroo (arXiv 2404.18911): a block of attention between two norms reads one early layer of the target.

It has no feed-forward part, and its LM head is rows of the target's. What it drafts is read like what stands in the
text: the target's first layers run on it.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from paceline.export.heads.config import HeadConfig, Shapes, Style
from paceline.export.heads.head import Head
from paceline.export.heads.layer import JOINS, attention_shapes, reading
from paceline.export.heads.writer import FINAL, HeadWriter

STYLE = Style(fused=False, entry="state", feed_forward=False)
_MATRICES = ("layer.qkv", "layer.o")


def shapes(c: HeadConfig) -> Shapes:
    """Weights of the checkpoint that not every head has."""
    return {**attention_shapes(c, c.hidden), "state_norm.weight": (c.hidden,), FINAL: (c.hidden,)}


def joins(_head: Head) -> Mapping[str, tuple[str, ...]]:
    """Matrices of the graphs that not every head has."""
    return {name: JOINS[name] for name in _MATRICES}


def read(w: HeadWriter) -> ir.Model:
    """The graph that reads hidden states, and says tokens behind them."""
    return reading(w, logits=True)
