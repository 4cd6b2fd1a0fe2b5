"""What the first graph of a split target says: what the norm and the LM head make of the states of its layers, through
an exit where one was trained, and of that the likeliest tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from paceline.export.errors import ExportError
from paceline.export.functions import append_functions
from paceline.export.heads.table import packed_of
from paceline.export.skips.early import output_of, stream_of
from paceline.export.skips.trained import EPSILON, Exit
from paceline.export.weights import append_weights
from paceline.runtime.ops.packed_matmul import PRODUCTS
from paceline.runtime.part import Part
from paceline.runtime.split import CHANCES, IDS

_Arrays = dict[str, npt.NDArray[Any]]
_Known = Mapping[str, ir.Value]
_HEAD, _SCALES = "head", "scales"


def say_early(model: ir.Model, target: Part, trained: Exit | None, work: Path) -> None:
    """Let a graph of a target's first layers name tokens in the place of its logits.

    work: folder of the bundle, into which the weights of the exit are written. Raises ExportError for an LM head of
    which no rows can be taken.
    """
    graph, logits, table, split = model.graph, output_of(model, "logits"), None, target.split
    assert split is not None
    if trained is not None:
        arrays: _Arrays = dict(trained.weights)
        assert split.data is not None
        data, own = work / target.data, work / split.data
        if (ids := trained.vocabulary) is not None:
            product = _product_of(logits, data)
            rows, count = _rows_of_head(product, data, ids)
            known = _stored(graph, arrays | rows, own)
            _narrow(model, product, known, count)
            table = _constant(graph, "tokens", ir.tensor(ids))
        else:
            known = _stored(graph, arrays, own)
        _adapt(model, f"hidden.{split.layer}", known)
    _name_best(graph, logits, split.named, table)
    graph.outputs[:] = [value for value in graph.outputs if value is not logits]


def copied_bytes(model: ir.Model) -> int:
    """What it has of the LM head beside the target's own."""
    rows = (model.graph.initializers.get(f"early.{name}") for name in (_HEAD, _SCALES))
    return sum(
        value.const_value.nbytes for value in rows if value is not None and value.const_value is not None
    )


def _product_of(logits: ir.Value, data: Path) -> ir.Node:
    """The product with the LM head. Raises ExportError where it is none, or has more than rows."""
    product = logits.producer()
    if product is not None and product.op_type in PRODUCTS:
        bias = PRODUCTS[product.op_type].index("bias")
        if product.op_type.endswith("QMatMul") and not any(product.inputs[bias:]):
            return product
    raise ExportError(
        f"{data.parent.parent}: the LM head of this model is none of which some rows can be taken: train the exit with "
        "--vocab of all tokens"
    )


def _rows_of_head(product: ir.Node, data: Path, ids: npt.NDArray[np.int64]) -> tuple[_Arrays, int]:
    """The rows of these tokens as they are stored, and how many they are."""
    head = packed_of(product, data).chosen(ids)
    scales = {} if head.scales is None else {_SCALES: head.scales}
    return {_HEAD: head.weights, **scales}, head.n


def _narrow(model: ir.Model, product: ir.Node, known: _Known, count: int) -> None:
    """Let the LM head have these rows alone; its body may be another one then."""
    first = PRODUCTS[product.op_type].index("weights")
    for at, name in enumerate((_HEAD, _SCALES), first):
        if name in known:
            product.replace_input_with(at, known[name])
    product.attributes["N"] = ir.AttrInt64("N", count)
    product.outputs[0].shape = ir.Shape(["R", count])
    append_functions(model)


def _stored(graph: ir.Graph, arrays: _Arrays, own: Path) -> _Known:
    """Constants of the graph, the large ones in a file of their own."""
    tensors = [ir.tensor(values, name=f"early.{name}") for name, values in arrays.items()]
    kept = append_weights(tensors, own.parent, own.name)
    return {name: _constant(graph, name, tensor) for name, tensor in zip(arrays, kept, strict=True)}


def _constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    tensor.name = f"early.{name}"
    made = ir.val(tensor.name, tensor.dtype, tensor.shape.numpy(), const_value=tensor)
    graph.register_initializer(made)
    return made


def _adapt(model: ir.Model, tap: str, known: _Known) -> None:
    """Let what says tokens read what the exit makes of a state."""
    graph = model.graph
    state, shows = stream_of(model, tap)
    maker, readers = state.producer(), [use.node for use in state.uses() if use.node is not shows]
    assert maker is not None
    two, half, epsilon, last = (
        _constant(graph, name, ir.tensor(value))
        for name, value in (
            ("two", np.array(2, np.float32)),
            ("half", np.array(-0.5, np.float32)),
            ("epsilon", np.array(EPSILON, np.float32)),
            ("last", np.array([-1], np.int64)),
        )
    )
    nodes: list[ir.Node] = []

    def add(operator: str, *inputs: ir.Value) -> ir.Value:
        nodes.append(ir.node(operator, list(inputs)))
        nodes[-1].outputs[0].dtype = ir.DataType.FLOAT
        return nodes[-1].outputs[0]

    mean = add("ReduceMean", add("Pow", state, two), last)
    sized = add("Mul", state, add("Pow", add("Add", mean, epsilon), half))
    moved = add("MatMul", add("MatMul", sized, known["down"]), known["up"])
    whole = add("Add", sized, add("Add", moved, known["bias"]))
    whole.shape = state.shape
    graph.insert_after(maker, nodes)
    for node in readers:
        for at, value in enumerate(node.inputs):
            if value is state:
                node.replace_input_with(at, whole)


def _name_best(graph: ir.Graph, logits: ir.Value, named: int, table: ir.Value | None) -> None:
    """Give the best of each row and their chances. table: the ids that logits are of; None: their own numbers."""
    law = ir.node("LogSoftmax", [logits], {"axis": -1})
    count = _constant(graph, "count", ir.tensor([named]))
    best = ir.node("TopK", [law.outputs[0], count], {"axis": -1}, num_outputs=2)
    nodes, (chances, ids) = [law, best], best.outputs
    if table is not None:
        nodes.append(ir.node("Gather", [table, ids], {"axis": 0}))
        ids = nodes[-1].outputs[0]
    graph.extend(nodes)
    shape = ir.Shape(["R", named])
    ids.name, ids.dtype, ids.shape = IDS, ir.DataType.INT64, shape
    chances.name, chances.dtype, chances.shape = CHANCES, ir.DataType.FLOAT, shape
    logits.name = "early.logits"
    graph.outputs[:0] = [ids, chances]
