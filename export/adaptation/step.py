"""The graph of a training step: the draft model's own nodes up to the last attention, then what torch derived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from paceline.export.adaptation.graph import tail
from paceline.export.adaptation.lesson import Tail, make_step
from paceline.export.capture import OPSET, quiet
from paceline.export.functions import append_functions
from paceline.runtime.adaptation.contract import MOMENTS, groups, sample_shapes
from paceline.runtime.manifest import Part
from paceline.runtime.model.rope import frequencies, reach
from paceline.runtime.ops import packed_matmul as matmul
from paceline.runtime.part import WINDOW


def training_step(model: ir.Model, part: Part) -> ir.Model:
    """The graph of a training step for the finished graph of a draft model with adapters, over a cache of fp32.

    It reads the same weights: packed matrices are unpacked by QEmbedding, which gives their columns. Its inputs and
    outputs are those of `runtime/adaptation/contract.py`. Raises ExportError for nodes whose gradient is not known.
    """
    front = model.clone()
    nodes = tail(front.graph, part.layers)
    end = Tail(nodes)
    values = _values(front.graph)
    given = [values[name] for name in end.given]
    derived = _derived(end, part, [_example(value, end.matrices.get(str(value.name))) for value in given])
    return _joined(front, nodes, end, derived, part)


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    found = {str(value.name): value for node in graph for value in node.outputs}
    return found | {str(v.name): v for v in (*graph.inputs, *graph.initializers.values())}


def _example(value: ir.Value, product: ir.Node | None) -> Tensor:
    """Something of the shape that a value has for a window; rows are the first axis."""
    if product is not None:
        return torch.zeros(product.attributes["N"].as_int(), product.attributes["K"].as_int())
    if value.const_value is not None:
        return torch.zeros(tuple(value.const_value.shape.numpy()))
    assert value.shape is not None
    return torch.zeros(WINDOW, int(str(value.shape[-1])))


def _derived(end: Tail, part: Part, given: Sequence[Tensor]) -> ir.Model:
    """What torch makes of a step, as a graph whose inputs are called as the contract does, `given` by their names."""
    shapes = sample_shapes()
    names = list(part.adapters)
    adapters = [torch.rand(part.adapters[name]) for name in names]
    sample = {
        name: torch.zeros(shape, dtype=torch.int64 if kind == "int64" else torch.float32)
        for name, (kind, shape) in shapes.items()
        if name not in ("token_ids", "past_len")
    }
    # Each argument is a tensor of its own: to the tracer the same tensor twice is one argument.
    moments = [torch.rand_like(value) for _ in MOMENTS for value in adapters]
    arguments = (
        *adapters,
        *moments,
        torch.ones(groups(part)),
        torch.ones(groups(part)),
        *sample.values(),
        *given,
    )
    with quiet():
        traced = make_fx(make_step(end, names))(*arguments)
        program = torch.onnx.export(
            traced,
            arguments,
            dynamo=True,
            verbose=False,
            optimize=True,
            opset_version=OPSET,
            input_names=[
                *names,
                *(f"{kind}.{name}" for kind in MOMENTS for name in names),
                "step",
                "rate",
                *sample,
                *(f"given.{at}" for at in range(len(given))),
            ],
            output_names=[f"{kind}.{name}" for kind in ("new", "new.first", "new.second") for name in names]
            + ["loss"],
        )
    assert program is not None
    common.InlinePass()(program.model)
    return program.model


def _joined(front: ir.Model, nodes: Sequence[ir.Node], end: Tail, derived: ir.Model, part: Part) -> ir.Model:
    """One graph of both: the tail goes, and what it read is what the derived one reads."""
    graph, back = front.graph, derived.graph
    values = _values(graph)
    inputs = {str(value.name): value for value in graph.inputs}
    for output in list(graph.outputs):
        graph.outputs.remove(output)
    graph.remove(list(nodes), safe=False)
    for name, array in _fixed(part).items():
        _put_constant(graph, inputs[name], array)
    token_ids = inputs["token_ids"]
    token_ids.shape = ir.Shape([WINDOW])
    kept = [token_ids, inputs["past_len"]]
    for at, name in enumerate(end.given):
        value = values[name]
        if name in end.matrices:
            value = _unpacked(graph, end.matrices[name])
        elif value.const_value is None:
            value = _rows(graph, value)
        source = next(v for v in back.inputs if v.name == f"given.{at}")
        for use in list(source.uses()):
            use.node.replace_input_with(use.idx, value)
    own = [value for value in back.inputs if not str(value.name).startswith("given.")]
    constants, outputs, moved = list(back.initializers.values()), list(back.outputs), list(back)
    while back.outputs:
        back.outputs.pop()
    while back.inputs:
        back.inputs.pop()
    back.remove(moved, safe=False)
    back.initializers.clear()
    for number, node in enumerate(moved):
        node.name = f"step.{number}"
        for value in node.outputs:
            if value not in outputs:
                value.name = f"step.{value.name}"
    while graph.inputs:
        graph.inputs.pop()
    graph.inputs.extend([*kept, *own])
    for value in constants:
        value.name = f"step.{value.name}"
        graph.register_initializer(value)
    graph.extend(moved)
    graph.outputs.extend(outputs)
    common.RemoveUnusedNodesPass()(front)
    common.TopologicalSortPass()(front)
    common.ClearMetadataAndDocStringPass()(front)
    append_functions(front)
    return front


def _fixed(part: Part) -> dict[str, npt.NDArray[Any]]:
    """What the inputs of a pass are in every window: a chain from the first place on, over an empty cache."""
    cache = np.zeros((part.kv_heads, 1, part.head_dim), np.float32)
    found: dict[str, npt.NDArray[Any]] = {
        "positions": np.arange(WINDOW),
        "rows": np.arange(WINDOW),
        "tree_mask": np.tri(WINDOW, dtype=np.bool_),
        **{f"cache_{side}.{layer}": cache for side in "kv" for layer in range(part.layers)},
    }
    if part.rope is not None:
        inverse, scale = frequencies(part.rope, reach(part.rope, 0, part.context))
        found |= {"inv_freq": np.asarray(inverse, np.float32), "rope_scale": np.full(1, scale, np.float32)}
    return found


def _put_constant(graph: ir.Graph, value: ir.Value, array: npt.NDArray[Any]) -> None:
    made = _constant(graph, f"fixed.{value.name}", array)
    for use in list(value.uses()):
        use.node.replace_input_with(use.idx, made)


def _constant(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        graph.register_initializer(ir.val(name, tensor.dtype, array.shape, const_value=tensor))
    return graph.initializers[name]


def _rows(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A value as [T, columns]."""
    node = ir.node("Reshape", [value, _constant(graph, "fixed.rows_shape", np.array([WINDOW, -1]))])
    node.name = node.outputs[0].name = f"rows.{value.name}"
    graph.append(node)
    return node.outputs[0]


def _unpacked(graph: ir.Graph, product: ir.Node) -> ir.Value:
    """The matrix of a product as W[N, K]."""
    names = matmul.PRODUCTS[product.op_type]
    held = {name: product.inputs[at] for at, name in enumerate(names) if at < len(product.inputs)}
    columns = product.attributes["N"].as_int()
    # Numbers that depend on an input: what follows from constants alone would be made, and kept, at load.
    past = next(value for value in graph.inputs if value.name == "past_len")
    numbers = ir.node("Add", [past, _constant(graph, f"fixed.columns.{columns}", np.arange(columns))])
    graph.append(numbers)
    inputs = [numbers.outputs[0], held["weights"]]
    if held.get("scales") is not None:
        inputs.append(held["scales"])
    attributes = {name: product.attributes[name].as_int() for name in matmul.ATTRIBUTES}
    node = ir.node(matmul.EMBEDDING, inputs, attributes, domain=matmul.DOMAIN)
    node.name = node.outputs[0].name = f"matrix.{product.name}"
    numbers.name = numbers.outputs[0].name = f"columns.{product.name}"
    node.outputs[0].dtype = ir.DataType.FLOAT
    node.outputs[0].shape = ir.Shape([columns, attributes["K"]])
    graph.append(node)
    return node.outputs[0]
