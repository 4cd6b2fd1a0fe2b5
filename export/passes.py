"""Graph passes that know no architecture: plain matrix products, shared inputs fused, constants folded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxscript.optimizer

from paceline.runtime.ops import tree_attention as contract

Floats = npt.NDArray[np.float32]

_TO_HEADS = ("Add", "Reshape", "Transpose", "Split", "Slice", "RMSNormalization", "RotaryEmbedding")
_SMALL = 1024
"""Elements of a constant that is folded and compared by value."""


def simplify(model: ir.Model) -> None:
    """Bring a captured graph into the form that is quantised and written.

    After it every product with a constant matrix is `MatMul(x, W[K, N])`, products of one input are one
    MatMul and a Split, equal subexpressions stand once, and no node or weight is unused.
    """
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    fold_transposes(model)
    unfold_gemms(model)
    tidy(model)
    fuse_shared_inputs(model)
    tidy(model)


def tidy(model: ir.Model) -> None:
    """Fold small constants, merge equal subexpressions, drop what is unused."""
    onnxscript.optimizer.fold_constants(model, input_size_limit=_SMALL, output_size_limit=_SMALL)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass(size_limit=_SMALL)(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)


def matmuls(graph: ir.Graph) -> list[ir.Node]:
    """The MatMul nodes whose right side is a constant matrix."""
    return [n for n in graph if n.op_type == "MatMul" and n.domain == "" and _is_matrix(n.inputs[1])]


def fold_transposes(model: ir.Model) -> None:
    """Replace `Transpose(W)` of a constant matrix by a lazily transposed constant."""
    graph = model.graph
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or not _is_matrix(source) or list(node.attributes["perm"].as_ints()) != [1, 0]:
            continue
        swapped = transposed(graph, source)
        node.outputs[0].replace_all_uses_with(swapped)
        graph.remove(node, safe=True)
    _drop_unused_weights(graph)


def unfold_gemms(model: ir.Model) -> None:
    """Replace Gemm by a constant matrix with MatMul and Add."""
    graph = model.graph
    for node in list(graph):
        if node.op_type != "Gemm" or node.domain != "" or not _is_matrix(node.inputs[1]):
            continue
        if _number(node, "transA", 0) or _number(node, "alpha", 1) != 1 or _number(node, "beta", 1) != 1:
            continue
        weight = node.inputs[1]
        assert weight is not None
        if _number(node, "transB", 0):
            weight = transposed(graph, weight)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        result = put_product(graph, node, node.inputs[0], weight, bias, node.outputs[0])
        node.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    _drop_unused_weights(graph)


def fuse_shared_inputs(model: ir.Model) -> None:
    """Fuse products of one input with constant matrices into one MatMul (and one Add) and a Split.

    Those that attention reads stay apart from the others, where both read one input: each kind is fused further.
    """
    graph = model.graph
    order = {node: i for i, node in enumerate(graph)}
    groups: dict[tuple[ir.Value, bool], list[ir.Node]] = defaultdict(list)
    for node in matmuls(graph):
        assert node.inputs[0] is not None
        groups[node.inputs[0], _feeds_attention(node)].append(node)
    for (shared, _), nodes in groups.items():
        if len(nodes) > 1 and len({_weight(n) for n in nodes}) == len(nodes):
            _fuse(graph, shared, sorted(nodes, key=order.__getitem__))
    _drop_unused_weights(graph)


def _feeds_attention(node: ir.Node) -> bool:
    """Whether a product becomes heads of attention, with no more than norms and rotations on the way."""
    waiting, seen = [node], set[ir.Node]()
    while waiting:
        node = waiting.pop()
        seen.add(node)
        for reader in {use.node for out in node.outputs for use in out.uses()} - seen:
            if reader.domain == contract.DOMAIN and reader.op_type == contract.NAME:
                return True
            if reader.domain == "" and reader.op_type in _TO_HEADS:
                waiting.append(reader)
    return False


def _fuse(graph: ir.Graph, shared: ir.Value, nodes: list[ir.Node]) -> None:
    biases = [bias_of(node) for node in nodes]
    widths = [_width(node) for node in nodes]
    weights = [_weight(node) for node in nodes]
    weight = joined(graph, f"{weights[0].name}.fused", [(str(w.name), _tensor(w)) for w in weights])
    bias = None
    if any(biases):
        rows = [
            floats_of(b[1]) if b else np.zeros(w, np.float32) for b, w in zip(biases, widths, strict=True)
        ]
        bias = constant_of(graph, f"{weight.name}.bias", np.concatenate(rows))
    like = ir.val(f"{nodes[0].outputs[0].name}.fused", ir.DataType.FLOAT, _last_axis(shared, sum(widths)))
    first = nodes[0]
    out = put_product(graph, first, shared, weight, bias, like)
    cuts = constant_of(graph, f"{weight.name}.widths", np.array(widths, np.int64))
    split = ir.node("Split", [out, cuts], {"axis": -1}, num_outputs=len(nodes))
    graph.insert_before(first, split)
    for node, found, piece in zip(nodes, biases, split.outputs, strict=True):
        old = found[0].outputs[0] if found else node.outputs[0]
        piece.name, piece.type, piece.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(piece, replace_graph_outputs=True)
        graph.remove([found[0], node] if found else [node], safe=True)


def put_product(
    graph: ir.Graph,
    before: ir.Node,
    x: ir.Value | None,
    weight: ir.Value,
    bias: ir.Value | None,
    like: ir.Value,
) -> ir.Value:
    """Insert `x @ weight + bias` before a node; the result has the name, type and shape of `like`."""
    product = ir.node("MatMul", [x, weight])
    result = product.outputs[0]
    result.name, result.type, result.shape = f"{like.name}.product", like.type, like.shape
    graph.insert_before(before, product)
    if bias is not None:
        add = ir.node("Add", [result, bias])
        graph.insert_before(before, add)
        result = add.outputs[0]
        result.type, result.shape = like.type, like.shape
    result.name = like.name
    return result


def bias_of(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add that is the only consumer of a product and adds a constant row to it, with that row."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    add = uses[0].node
    if add.op_type != "Add" or add.domain != "":
        return None
    other = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    if other is None or other.const_value is None or sizes(other) != [_width(node)]:
        return None
    return add, other


class Joined(ir.LazyTensor):
    """A constant [K, N1 + N2 + ...] that is put together only when it is read; `parts` are its columns, by name."""

    def __init__(self, name: str, parts: Sequence[tuple[str, ir.TensorProtocol]]) -> None:
        tensors = [tensor for _, tensor in parts]
        rows, widths = int(str(tensors[0].shape[0])), [int(str(tensor.shape[1])) for tensor in tensors]
        super().__init__(
            # Transposed views are joined along their contiguous axis: no element is moved twice.
            lambda: ir.tensor(np.concatenate([tensor.numpy().T for tensor in tensors], axis=0).T),
            ir.DataType.FLOAT,
            ir.Shape([rows, sum(widths)]),
            name=name,
        )
        self.parts = tuple(parts)


def joined(graph: ir.Graph, name: str, parts: Sequence[tuple[str, ir.TensorProtocol]]) -> ir.Value:
    """Add a constant to the graph whose columns are these matrices side by side."""
    tensor = Joined(name, parts)
    value = ir.val(name, ir.DataType.FLOAT, tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def transposed(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    """A constant that reads as the transpose of another; the same one for the same weight."""
    name = f"{weight.name}.T"
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = _tensor(weight)
    return _lazy(graph, name, lambda: ir.tensor(tensor.numpy().T), sizes(weight)[::-1])


def _lazy(graph: ir.Graph, name: str, make: Callable[[], ir.TensorProtocol], shape: list[int]) -> ir.Value:
    tensor = ir.LazyTensor(make, ir.DataType.FLOAT, ir.Shape(shape), name=name)
    value = ir.val(name, ir.DataType.FLOAT, shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def constant_of(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """Add a constant to the graph."""
    tensor = ir.tensor(array, name=name)
    value = ir.val(name, tensor.dtype, array.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def floats_of(value: ir.Value) -> Floats:
    """The content of a float32 constant; a view where it is held in memory."""
    array: Floats = _tensor(value).numpy()
    return array


def sizes(value: ir.Value) -> list[int]:
    """Shape of a constant."""
    return [int(str(size)) for size in _tensor(value).shape]


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _weight(node: ir.Node) -> ir.Value:
    assert node.inputs[1] is not None
    return node.inputs[1]


def _width(node: ir.Node) -> int:
    return sizes(_weight(node))[1]


def _last_axis(value: ir.Value, size: int) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([*value.shape.dims[:-1], size])


def _is_matrix(value: ir.Value | None) -> bool:
    if value is None or value.const_value is None or not value.is_initializer():
        return False
    return value.dtype == ir.DataType.FLOAT and len(value.const_value.shape) == 2


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return attribute.as_float() if attribute.type == ir.AttributeType.FLOAT else attribute.as_int()


def _drop_unused_weights(graph: ir.Graph) -> None:
    for name in [n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del graph.initializers[name]


def backward_cone(graph: ir.Graph, name: str) -> set[ir.Node]:
    """Every node that a value of the graph depends on."""
    by_name = {o.name: n for n in graph for o in n.outputs}
    found: set[ir.Node] = set()
    waiting = [by_name[name]] if name in by_name else []
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        waiting.extend(_producers(node))
    return found


def _producers(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None:
            yield producer


def nodes_per_layer(graph: ir.Graph, layers: int) -> float:
    """Nodes that one more layer adds: those behind the last layer's key but not behind the first one's."""
    if layers == 1:
        return float(len(list(graph)))
    first = backward_cone(graph, "new_k.0")
    last = backward_cone(graph, f"new_k.{layers - 1}")
    return len(last - first) / (layers - 1)
