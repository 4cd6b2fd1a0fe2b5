"""Operators that execution providers beside the CPU's take, in the place of newer ones that only the CPU has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from paceline.export.fuse import EPSILON
from paceline.export.passes import constant_of
from paceline.export.products import put

OPSET = 21
"""The newest one that no provider has to be asked about: above it OpenVINO leaves norms and rotations to the CPU."""


def make_portable(model: ir.Model) -> None:
    """Write norms as SimplifiedLayerNormalization and rotations as sums of products, and go back to `OPSET`.

    The rest of what the exporter writes means the same in both versions.
    """
    graph = model.graph
    for node in list(graph):
        if node.domain == "" and node.op_type == "RMSNormalization":
            _norm(graph, node)
        elif node.domain == "" and node.op_type == "RotaryEmbedding":
            _rotation(graph, node)
    model.opset_imports[""] = OPSET
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)


def _norm(graph: ir.Graph, node: ir.Node) -> None:
    epsilon, axis = node.attributes.get("epsilon"), node.attributes.get("axis")
    attributes = {
        "axis": -1 if axis is None else axis.as_int(),
        "epsilon": EPSILON if epsilon is None else epsilon.as_float(),
        "stash_type": ir.DataType.FLOAT.value,
    }
    put(graph, node, ir.node("SimplifiedLayerNormalization", node.inputs, attributes))


def _rotation(graph: ir.Graph, node: ir.Node) -> None:
    """x [1, heads, T, D] by tables [1, T, half]: pairs are one number from each half, or neighbours."""
    x, cos, sin = node.inputs[:3]
    assert x is not None and x.shape is not None  # noqa: PT018
    assert cos is not None and cos.shape is not None  # noqa: PT018
    size, half = int(str(x.shape[-1])), int(str(cos.shape[-1]))
    interleaved = node.attributes.get("interleaved")
    made = _Nodes(graph, str(node.outputs[0].name), list(x.shape)[:-1])
    turned, rest = (x, None) if size == 2 * half else made.split(x, 2 * half, size - 2 * half)
    if interleaved is not None and interleaved.as_int():
        y = made.turn_neighbours(turned, cos, sin, half)
    else:
        y = made.one("Concat", made.turn(*made.split(turned, half, half), cos, sin), (2 * half,), axis=-1)
    if rest is not None:
        y = made.one("Concat", [y, rest], (size,), axis=-1)
    last = made.nodes.pop()
    graph.insert_before(node, made.nodes)
    put(graph, node, last)


class _Nodes:
    """Nodes that take the place of one. rows: the sizes of all axes but the last."""

    def __init__(self, graph: ir.Graph, name: str, rows: Sequence[int | ir.SymbolicDim]) -> None:
        self.nodes: list[ir.Node] = []
        self._graph, self._name, self._rows = graph, name, rows

    def one(
        self, operator: str, inputs: Sequence[ir.Value | None], last: Sequence[int], **attributes: int
    ) -> ir.Value:
        """A node whose result has the rows, and these sizes behind them."""
        return self._add(ir.node(operator, inputs, attributes), last)[0]

    def split(self, x: ir.Value, first: int, second: int) -> tuple[ir.Value, ir.Value]:
        """x in two along its last axis."""
        cut = ir.node("Split", [x, self._numbers(first, second)], {"axis": -1}, num_outputs=2)
        a, b = self._add(cut, (first,), (second,))
        return a, b

    def turn(
        self, a: ir.Value, b: ir.Value, cos: ir.Value | None, sin: ir.Value | None
    ) -> tuple[ir.Value, ir.Value]:
        """Pairs (a, b), [1, heads, T, half] each, turned by their angles."""
        assert a.shape is not None
        half = (int(str(a.shape[-1])),)
        ac, bs = self.one("Mul", [a, cos], half), self.one("Mul", [b, sin], half)
        bc, as_ = self.one("Mul", [b, cos], half), self.one("Mul", [a, sin], half)
        return self.one("Sub", [ac, bs], half), self.one("Add", [bc, as_], half)

    def turn_neighbours(self, x: ir.Value, cos: ir.Value | None, sin: ir.Value | None, half: int) -> ir.Value:
        """Neighbours of x [1, heads, T, 2 half] turned by their angles: a product swaps them, exactly, and without a
        fifth axis, which some providers lack."""
        swap, even = np.zeros((2 * half, 2 * half), np.float32), np.arange(0, 2 * half, 2)
        swap[even + 1, even], swap[even, even + 1] = -1, 1
        twice = self._matrix(f"twice.{half}", np.repeat(np.eye(half, dtype=np.float32), 2, axis=1))
        swapped = self.one("MatMul", [x, self._matrix(f"swap.{half}", swap)], (2 * half,))
        wide = [self._add(ir.node("MatMul", [table, twice]), None)[0] for table in (cos, sin)]
        still, moved = (self.one("Mul", [a, b], (2 * half,)) for a, b in zip((x, swapped), wide, strict=True))
        return self.one("Add", [still, moved], (2 * half,))

    def _matrix(self, name: str, array: npt.NDArray[np.float32]) -> ir.Value:
        known = self._graph.initializers.get(name)
        return known or constant_of(self._graph, name, array)

    def _add(self, node: ir.Node, *last: Sequence[int] | None) -> Sequence[ir.Value]:
        self.nodes.append(node)
        for place, (value, sizes) in enumerate(zip(node.outputs, last, strict=True)):
            value.name = f"{self._name}.{len(self.nodes)}:{place}"
            value.dtype = ir.DataType.FLOAT
            value.shape = None if sizes is None else ir.Shape([*self._rows, *sizes])
        return node.outputs

    def _numbers(self, *numbers: int) -> ir.Value:
        name = "numbers." + ".".join(map(str, numbers))
        known = self._graph.initializers.get(name)
        return known or constant_of(self._graph, name, np.array(numbers, np.int64))
