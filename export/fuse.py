"""Packed products take in what surrounds them: bias, activation, residual, norm. Patterns, no architectures."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from paceline.export.activations import activation_between
from paceline.export.passes import sizes
from paceline.export.pieces import pieces_of
from paceline.export.products import put
from paceline.runtime.ops import packed_matmul as contract

EPSILON = 1e-5
"""RMSNormalization's own default."""


def fuse_products(model: ir.Model) -> None:
    """Fuse every packed product with its neighbours where an operator for that exists."""
    graph = model.graph
    for node in products(graph):
        _take_bias(graph, node)
    _take_gates(graph)
    for node in products(graph, "QMatMul"):
        _take_residual(graph, node)
    _choose_rows_first(graph)
    for node in list(graph):
        if node.op_type == "RMSNormalization":
            _give_norm(graph, node)
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)


def products(graph: ir.Graph, *names: str) -> list[ir.Node]:
    """The packed products of these names; of any name if none is given."""
    return [n for n in graph if n.domain == contract.DOMAIN and n.op_type in (names or contract.PRODUCTS)]


def operand(node: ir.Node, name: str) -> ir.Value | None:
    """An input of a packed product by its name."""
    at = contract.PRODUCTS[node.op_type].index(name)
    return node.inputs[at] if at < len(node.inputs) else None


def renamed(node: ir.Node, op: str, **changes: ir.Value | None) -> ir.Node:
    """The same product as another operator, with some operands set."""
    inputs = []
    for name in contract.PRODUCTS[op]:
        kept = operand(node, name) if name in contract.PRODUCTS[node.op_type] else None
        inputs.append(changes.get(name, kept))
    while inputs[-1] is None:
        inputs.pop()
    return ir.node(op, inputs, dict(node.attributes), domain=contract.DOMAIN, name=node.name)


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that reads a value, if it is one alone and the graph does not give the value out."""
    readers = {use.node for use in value.uses()}
    return readers.pop() if len(readers) == 1 and not value.is_graph_output() else None


def _take_bias(graph: ir.Graph, node: ir.Node) -> None:
    """`Add(product, row)` with a constant row."""
    out = node.outputs[0]
    add = only_reader(out)
    if add is None or add.op_type != "Add" or operand(node, "bias") is not None:
        return
    row = add.inputs[1] if add.inputs[0] is out else add.inputs[0]
    if row is None or row.const_value is None or sizes(row) != [_width(node)]:
        return
    put(graph, add, renamed(node, node.op_type, bias=row))
    graph.remove(node, safe=True)


def _take_gates(graph: ir.Graph) -> None:
    """`activation(first half) * second half`."""
    for node in products(graph, "QMatMul"):
        if (match := _gated(node)) is not None:
            activation, product = match
            fused = renamed(node, "QMatMulGlu")
            fused.attributes["activation"] = ir.AttrString("activation", activation)
            put(graph, product, fused)


def _gated(node: ir.Node) -> tuple[str, ir.Node] | None:
    pieces = pieces_of(node.outputs[0], _width(node))
    if pieces is None or len(pieces) != 2 or pieces[0].stop * 2 != _width(node):
        return None
    gate, up = (piece.value for piece in pieces)
    product = only_reader(up)
    if product is None or product.op_type != "Mul":
        return None
    bent = product.inputs[1] if product.inputs[0] is up else product.inputs[0]
    activation = activation_between(gate, bent) if bent is not None and only_reader(bent) else None
    return None if activation is None else (activation, product)


def _take_residual(graph: ir.Graph, node: ir.Node) -> None:
    """`Add(product, other)` of one shape."""
    out = node.outputs[0]
    add = only_reader(out)
    if add is None or add.op_type != "Add" or add.inputs[0] is add.inputs[1]:
        return
    other = add.inputs[1] if add.inputs[0] is out else add.inputs[0]
    if other is None or other.dtype != ir.DataType.FLOAT or other.shape is None or other.shape != out.shape:
        return
    put(graph, add, renamed(node, "QMatMulAdd", residual=other))
    graph.remove(node, safe=True)


def _choose_rows_first(graph: ir.Graph) -> None:
    """Norm only the rows that are kept: `Gather(Squeeze(norm(x)))` becomes `norm(Gather(Squeeze(x)))`."""
    for norm in [n for n in graph if _is_norm(n)]:
        squeeze = only_reader(norm.outputs[0])
        gather = only_reader(squeeze.outputs[0]) if squeeze and squeeze.op_type == "Squeeze" else None
        if squeeze is None or gather is None or gather.op_type != "Gather":
            continue
        axis = gather.attributes.get("axis")
        if gather.inputs[0] is not squeeze.outputs[0] or (axis is not None and axis.as_int() != 0):
            continue
        shape = gather.outputs[0].shape
        x = norm.inputs[0]
        if shape is None or len(shape) != 2 or x is None or x.shape is None or len(x.shape) != 3:
            continue
        flat = ir.node("Squeeze", [x, *squeeze.inputs[1:]], dict(squeeze.attributes))
        rows = ir.node("Gather", [flat.outputs[0], gather.inputs[1]], dict(gather.attributes))
        kept = ir.node("RMSNormalization", [rows.outputs[0], norm.inputs[1]], dict(norm.attributes))
        for old, new in ((squeeze, flat), (gather, rows)):
            new.outputs[0].type, new.outputs[0].shape = old.outputs[0].type, old.outputs[0].shape
            new.outputs[0].name = f"{old.outputs[0].name}.plain"
            graph.insert_before(gather, new)
        put(graph, gather, kept)
        graph.remove([squeeze, norm], safe=True)


def _give_norm(graph: ir.Graph, norm: ir.Node) -> None:
    """A norm that only products read is done by each of them."""
    out = norm.outputs[0]
    if not _is_norm(norm) or out.is_graph_output() or not out.uses():
        return
    if not all(_normable(use.node) and use.idx == 0 for use in out.uses()):
        return
    epsilon = norm.attributes.get("epsilon")
    for node in [use.node for use in out.uses()]:
        fused = renamed(node, f"Norm{node.op_type}", x=norm.inputs[0], norm=norm.inputs[1])
        fused.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon.as_float() if epsilon else EPSILON)
        put(graph, node, fused)
    graph.remove(norm, safe=True)


def _normable(node: ir.Node) -> bool:
    return node.domain == contract.DOMAIN and f"Norm{node.op_type}" in contract.PRODUCTS


def _is_norm(node: ir.Node) -> bool:
    """An RMS norm of the last axis by a constant row."""
    if node.op_type != "RMSNormalization" or node.domain != "" or len(node.outputs) != 1:
        return False
    x, scale = node.inputs[:2]
    axis = node.attributes.get("axis")
    if x is None or x.shape is None or scale is None or scale.const_value is None or len(sizes(scale)) != 1:
        return False
    return axis is None or axis.as_int() in (-1, len(x.shape) - 1)


def _width(node: ir.Node) -> int:
    return node.attributes["N"].as_int()
