"""What a graph computes of positions alone, as tables: rotary angles keep their digits where numbers have 16 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from paceline.export.check import evaluate
from paceline.export.errors import ExportError

_ANGLES = ("Cos", "Sin")


@dataclass(frozen=True, slots=True)
class Table:
    """A value of a graph for all positions, which lie along one axis. name: of the value."""

    name: str
    axis: int
    tensor: ir.TensorProtocol


def tables_of(graph: ir.Model, length: int) -> list[Table]:
    """Tables for the positions 0 to length - 1 of what is made of angles and read by the rest of the graph.

    Raises ExportError where angles depend on more than positions.
    """
    made = _of_positions(graph.graph)
    if any(node.op_type in _ANGLES and node.outputs[0] not in made for node in graph.graph):
        raise ExportError(
            "its rotary angles depend on more than positions: static graphs have them as tables"
        )
    turned = {value for value in made if _has_angles(value)}
    read = [v for v in turned if v.is_graph_output() or any(_reads_on(use.node, turned) for use in v.uses())]
    if not read:
        return []
    read.sort(key=lambda value: str(value.name))
    names = [str(value.name) for value in read]
    cut = ir.Model(
        ir.convenience.extract(graph.clone().graph, ["positions"], names), ir_version=graph.ir_version
    )
    few, all_ = (_values(cut, n) for n in (3, length))
    return [_table(name, small, whole) for name, small, whole in zip(names, few, all_, strict=True)]


def _of_positions(graph: ir.Graph) -> set[ir.Value]:
    """Values that depend on positions and constants, and on positions at all."""
    found = {value for value in graph.inputs if value.name == "positions"}
    for node in graph:
        given = [value for value in node.inputs if value is not None and not value.is_initializer()]
        if given and found.issuperset(given):
            found.update(node.outputs)
    return found


def _has_angles(value: ir.Value) -> bool:
    waiting, seen = [value.producer()], set[ir.Node]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.op_type in _ANGLES:
            return True
        seen.add(node)
        waiting += [v.producer() for v in node.inputs if v is not None]
    return False


def _reads_on(node: ir.Node, turned: set[ir.Value]) -> bool:
    return any(out not in turned for out in node.outputs)


def _values(cut: ir.Model, positions: int) -> list[npt.NDArray[np.float32]]:
    raw = ir.to_proto(cut).SerializeToString()
    return evaluate(raw, {"positions": np.arange(positions, dtype=np.int64)})


def _table(name: str, few: npt.NDArray[np.float32], whole: npt.NDArray[np.float32]) -> Table:
    axes = [axis for axis, (a, b) in enumerate(zip(few.shape, whole.shape, strict=True)) if a != b]
    if len(axes) != 1 or not np.isfinite(whole).all():
        raise ExportError(f"{name} has no row for each position: static graphs cannot have it as a table")
    return Table(name, axes[0], ir.tensor(np.ascontiguousarray(whole), name=f"{name}.table"))
