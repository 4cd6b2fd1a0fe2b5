"""Weights in 16 bits: the checkpoint's own type where that loses nothing, with the cast left to the graph."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from paceline.export.passes import Floats, floats_of, matmuls, sizes

_LEAST = 1024
"""Elements below which a weight is left alone."""
_SLICE = 1 << 20
_NUMPY: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
STORED = {
    "float16": ("fp16", ir.DataType.FLOAT16),
    "bfloat16": ("bf16", ir.DataType.BFLOAT16),
    "float32": ("fp32", ir.DataType.FLOAT),
}
"""By numpy name: how a weight that is stored in this type is called, and its ONNX type."""


def narrow(model: ir.Model, dtype: str, lossless: bool) -> None:
    """Store embedding tables and matrices in 16 bits, computing in float32 behind a Cast.

    dtype is the checkpoint's: float16 and bfloat16 are kept as they are; the rows of a float32 checkpoint
    become float16. With `lossless` a weight stays float32 unless every value survives. Rows of a table are
    cast after they are gathered; ORT folds the Cast of a matrix when it loads the graph.
    """
    graph = model.graph
    half = narrow_kind(dtype)
    found = tables(graph)
    _share_tied(graph, found)
    # Both kinds first: a tied table is read by a Gather and, through a Transpose, by the head.
    wide = dict.fromkeys([*found, *(v for n in matmuls(graph) if (v := n.inputs[1]) is not None)])
    for value in wide:
        values = floats_of(value)
        if values.size >= _LEAST and fits(values, half, lossless):
            _store(graph, value, half)


def narrow_kind(dtype: str) -> Any:
    """The numpy type of 16 bits that the weights of a checkpoint of this type are stored in."""
    return _NUMPY.get(dtype, np.float16)


def tables(graph: ir.Graph) -> list[ir.Value]:
    """Float matrices that rows are gathered from."""
    found: dict[ir.Value, None] = {}
    for node in graph:
        table = node.inputs[0] if node.op_type == "Gather" and node.domain == "" else None
        if table is None or not table.is_initializer() or table.dtype != ir.DataType.FLOAT:
            continue
        axis = node.attributes.get("axis")
        if table.shape is not None and len(table.shape) == 2 and (axis is None or axis.as_int() == 0):
            found[table] = None
    return list(found)


def _share_tied(graph: ir.Graph, found: list[ir.Value]) -> None:
    """Let a head whose matrix is a table transposed read the table: one copy on disk."""
    for node in matmuls(graph):
        weight = node.inputs[1]
        assert weight is not None
        for table in found:
            if sizes(table) != sizes(weight)[::-1] or not same(floats_of(table), floats_of(weight).T):
                continue
            turn = ir.node("Transpose", [table], {"perm": [1, 0]}, name=f"{table.name}.turned")
            turned = turn.outputs[0]
            turned.name, turned.type, turned.shape = f"{table.name}.turned", weight.type, weight.shape
            graph.insert_before(graph[0], turn)
            node.replace_input_with(1, turned)
            if not weight.uses() and weight.name is not None:
                del graph.initializers[weight.name]
            break


def same(a: Floats, b: Floats) -> bool:
    """Whether two matrices are equal, compared a few rows at a time."""
    step = max(1, _SLICE // max(1, a.shape[1]))
    return all(np.array_equal(a[i : i + step], b[i : i + step]) for i in range(0, len(a), step))


def fits(values: Floats, half: Any, lossless: bool) -> bool:
    """Whether every value survives (or, where losing digits is allowed, stays finite)."""
    flat = values if values.flags.c_contiguous else values.T
    step = max(1, _SLICE // max(1, flat.shape[1]))
    for i in range(0, len(flat), step):
        piece = flat[i : i + step]
        with np.errstate(over="ignore"):
            back = piece.astype(half).astype(np.float32)
        if not (np.array_equal(back, piece) if lossless else np.isfinite(back).all()):
            return False
    return True


def _store(graph: ir.Graph, value: ir.Value, half: Any) -> None:
    """Replace a float32 constant by its 16-bit form; each reader gets float32 back."""
    tensor = value.const_value
    assert tensor is not None
    assert value.name is not None

    def convert() -> ir.TensorProtocol:
        wide: npt.NDArray[Any] = tensor.numpy()
        return ir.tensor(wide.astype(half))

    suffix, kind = STORED[np.dtype(half).name]
    name = f"{value.name}.{suffix}"
    lazy = ir.LazyTensor(convert, kind, ir.Shape(sizes(value)), name=name)
    stored = ir.val(name, kind, lazy.shape, const_value=lazy)
    graph.register_initializer(stored)
    whole: ir.Value | None = None
    for use in list(value.uses()):
        node, at = use.node, use.idx
        if node.op_type == "Gather" and at == 0:
            node.replace_input_with(0, stored)
            _cast_result(graph, node, kind)
            continue
        if whole is None:
            cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}, name=f"{value.name}.cast")
            whole = cast.outputs[0]
            whole.name, whole.dtype, whole.shape = f"{value.name}.fp32", ir.DataType.FLOAT, value.shape
            graph.insert_before(graph[0], cast)
        node.replace_input_with(at, whole)
    del graph.initializers[value.name]


def _cast_result(graph: ir.Graph, node: ir.Node, kind: ir.DataType) -> None:
    out = node.outputs[0]
    cast = ir.node("Cast", [out], {"to": ir.DataType.FLOAT.value}, name=f"{out.name}.cast")
    result = cast.outputs[0]
    result.name, result.dtype, result.shape = out.name, ir.DataType.FLOAT, out.shape
    out.replace_all_uses_with(result, replace_graph_outputs=True)
    cast.replace_input_with(0, out)
    # A new type: values that came from one another may share the old one.
    out.name, out.type = f"{out.name}.narrow", ir.TensorType(kind)
    graph.insert_after(node, cast)
