"""What a value is cut into along its last axis, by Split or by Slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Piece:
    """Columns start..stop of a value, which a node cuts out."""

    start: int
    stop: int
    value: ir.Value


def pieces_of(value: ir.Value, width: int) -> list[Piece] | None:
    """What a value is cut into along its last axis, from first to last, if all its readers do that.

    None where something else reads it, where pieces overlap or leave a gap, or where the graph gives it out.
    """
    pieces: list[Piece] = []
    for use in value.uses():
        cut = _split(use.node, value, width) or _slice(use.node, value, width)
        if use.idx != 0 or cut is None:
            return None
        pieces += cut
    pieces.sort(key=lambda piece: piece.start)
    edges = [0, *(piece.stop for piece in pieces)]
    whole = [piece.start for piece in pieces] == edges[:-1] and edges[-1] == width
    return pieces if whole and not value.is_graph_output() else None


def _split(node: ir.Node, value: ir.Value, width: int) -> list[Piece] | None:
    if node.op_type != "Split" or not _is_last(value, _axis(node)):
        return None
    count = len(node.outputs)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    widths = [width // count] * count if given is None else _integers(given)
    if widths is None or sum(widths) != width:
        return None
    edges = [0, *np.cumsum(widths).tolist()]
    return [Piece(a, b, out) for a, b, out in zip(edges, edges[1:], node.outputs, strict=False)]


def _slice(node: ir.Node, value: ir.Value, width: int) -> list[Piece] | None:
    if node.op_type != "Slice" or len(node.inputs) < 4:
        return None
    numbers = [_integers(v) if v is not None else None for v in node.inputs[1:]]
    if any(n is None or len(n) != 1 for n in numbers):
        return None
    start, stop, axis, *step = [n[0] for n in numbers if n is not None]
    if step not in ([], [1]) or not _is_last(value, axis) or start < 0 or stop < 0:
        return None
    return [Piece(start, min(stop, width), node.outputs[0])]


def _is_last(value: ir.Value, axis: int) -> bool:
    return axis == -1 or (value.shape is not None and axis == len(value.shape) - 1)


def _integers(value: ir.Value) -> list[int] | None:
    if value.const_value is None:
        return None
    return [int(i) for i in value.const_value.numpy().reshape(-1)]


def _axis(node: ir.Node) -> int:
    axis = node.attributes.get("axis")
    return 0 if axis is None else axis.as_int()
