"""A session of stock ONNX Runtime around one of our nodes and its function body: no kernels of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from paceline.export.functions import append_functions

Array = np.ndarray[Any, Any]
OPSET = 23


def as_constant(name: str, array: Array) -> ir.Value:
    """An initializer; uint16 holds the bits of bfloat16."""
    if array.dtype == np.uint16:
        tensor: ir.TensorProtocol = ir.Tensor(array, ir.DataType.BFLOAT16, name=name)
    else:
        tensor = ir.tensor(array, name=name)
    return ir.val(name, tensor.dtype, array.shape, const_value=tensor)


def body_model(
    op: str,
    order: tuple[str, ...],
    constants: Mapping[str, Array],
    fed: Mapping[str, Array],
    outputs: int = 1,
    **attributes: Any,
) -> ir.Model:
    """One node with the body that the exporter gives it; inputs are `order` ("" = absent)."""
    values = {name: as_constant(name, array) for name, array in constants.items()}
    given = {
        name: ir.val(name, ir.tensor(array).dtype, _open_shape(name, array)) for name, array in fed.items()
    }
    inputs = [(values | given).get(name) for name in order]
    while inputs[-1] is None:
        inputs.pop()
    node = ir.node(op, inputs, attributes, domain="paceline", num_outputs=outputs)
    for i, out in enumerate(node.outputs):
        out.name, out.dtype = f"y{i}", ir.DataType.FLOAT
    graph = ir.Graph(
        list(given.values()),
        list(node.outputs),
        nodes=[node],
        initializers=list(values.values()),
        opset_imports={"": OPSET},
        name="one",
    )
    model = ir.Model(graph, ir_version=10)
    append_functions(model)
    return model


def _open_shape(name: str, array: Array) -> list[str | int]:
    """Free sizes, but for how many numbers a row of floats has."""
    free: list[str | int] = [f"{name}.{i}" for i in range(array.ndim)]
    if array.dtype == np.float32:
        free[-1] = array.shape[-1]
    return free


def session(model: ir.Model) -> ort.InferenceSession:
    """The model without our library."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    raw = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
