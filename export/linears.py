"""Projections as one node that names its weight: tracing never makes a transposed copy of a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from paceline.export.errors import ExportError

_LINEAR = "paceline.capture::Linear"
"""A stand-in that exists only between tracing and `expand_linears`."""


@contextmanager
def plain_linears(model: nn.Module) -> Iterator[None]:
    """Keep every projection one node that names its weight, instead of a transposed copy of the weight."""
    changed = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and "forward" not in vars(m)]
    try:
        for module in changed:
            vars(module)["forward"] = _linear_forward(module)
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def _linear_forward(module: nn.Linear | Conv1D) -> Callable[[Tensor], Tensor]:
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    transposed = isinstance(module, nn.Linear)
    width = weight.shape[0 if transposed else 1]

    def forward(x: Tensor) -> Tensor:
        y = torch.onnx.ops.symbolic(
            _LINEAR,
            (x, weight),
            {"transposed": int(transposed)},
            dtype=x.dtype,
            shape=(*x.shape[:-1], width),
            version=1,
        )
        return y + bias if isinstance(bias, Tensor) else y

    return forward


def expand_linears(model: ir.Model) -> None:
    """Turn each stand-in into MatMul with a weight `[in, out]`, which is a view of the torch tensor."""
    views: dict[str, ir.Value] = {}
    domain, _, kind = _LINEAR.partition("::")
    for node in list(model.graph):
        if node.domain != domain or node.op_type != kind:
            continue
        x, weight = node.inputs
        assert weight is not None
        if node.attributes["transposed"].as_int():
            weight = _transposed(model, weight, views)
        product = ir.Node("", "MatMul", [x, weight], name=node.name)
        before, after = node.outputs[0], product.outputs[0]
        after.name, after.shape, after.type = before.name, before.shape, before.type
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [product], node.outputs, product.outputs
        )
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    model.opset_imports.pop(domain, None)


def _transposed(model: ir.Model, weight: ir.Value, views: dict[str, ir.Value]) -> ir.Value:
    assert weight.name is not None
    if weight.name not in views:
        tensor = weight.const_value
        raw = getattr(tensor, "raw", None)
        if not isinstance(raw, Tensor):
            raise ExportError(f"the weight {weight.name} is not a plain parameter")
        name = f"{weight.name}.T"
        view = TorchTensor(raw.detach().t(), name=name)
        value = ir.Value(name=name, shape=view.shape, type=ir.TensorType(view.dtype), const_value=view)
        model.graph.register_initializer(value)
        views[weight.name] = value
    return views[weight.name]
