"""Static graphs in 16 bits: weights, cache and everything between; logits and hidden states come out as float32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from paceline.export.errors import ExportError

_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_REALS = (_FLOAT, ir.DataType.BFLOAT16)
Tensors = Mapping[str, ir.TensorProtocol]


def half_of(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same in 16 bits, made when it is read; what holds no floats, or such of 16 bits, stays as it is."""
    if tensor.dtype not in _REALS:
        return tensor
    name = f"{tensor.name}.half"
    return ir.LazyTensor(lambda: _rounded(tensor, name), _HALF, ir.Shape(tensor.shape.numpy()), name=name)


def wide_of(tensor: ir.TensorProtocol, value: ir.Value) -> ir.TensorProtocol:
    """What became halves in the type of a value, made when it is read."""
    assert value.dtype is not None
    kind = value.dtype.numpy()

    def made() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(kind), name=value.name)

    return ir.LazyTensor(made, value.dtype, ir.Shape(tensor.shape.numpy()), name=value.name)


def _rounded(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    with np.errstate(over="ignore"):
        values = tensor.numpy().astype(np.float32).astype(np.float16)
    if not np.isfinite(values).all():
        raise ExportError(f"{tensor.name} has numbers that 16 bits do not hold: use --static-type fp32")
    return ir.tensor(values, name=name)


def in_halves(model: ir.Model, stored: Tensors) -> None:
    """Turn a static graph into one that computes in 16 bits. stored: what `half_of` made of its weights, by name."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if value.dtype in _REALS and value.const_value is not None:
            tensor = stored.get(name) or _rounded(value.const_value, f"{name}.half")
            made = ir.val(str(tensor.name), _HALF, value.shape, const_value=tensor)
            graph.register_initializer(made)
            value.replace_all_uses_with(made)
            del graph.initializers[name]
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() in (*_REALS, _HALF):
            _drop_cast(graph, node)
    for value in [*graph.inputs, *(out for node in graph for out in node.outputs)]:
        if value.dtype == _FLOAT:
            value.type = ir.TensorType(_HALF)
    for place, value in enumerate(list(graph.outputs)):
        if not str(value.name).startswith("new_"):
            graph.outputs[place] = _widened(graph, value)
    common.RemoveUnusedNodesPass()(model)


def _drop_cast(graph: ir.Graph, node: ir.Node) -> None:
    """All floats have one type: a cast from one to another is none, and one of whole numbers gives halves."""
    given, out = node.inputs[0], node.outputs[0]
    if given is None or given.dtype not in (*_REALS, _HALF) or out.is_graph_output():
        node.attributes["to"] = ir.AttrInt64("to", _HALF.value)
        return
    out.replace_all_uses_with(given)
    graph.remove(node, safe=True)


def _widened(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """An output in float32, under its name."""
    cast = ir.node("Cast", [value], {"to": _FLOAT.value})
    out = cast.outputs[0]
    out.name, out.type, out.shape = value.name, ir.TensorType(_FLOAT), value.shape
    value.name = f"{value.name}.half"
    graph.append(cast)
    return out
