"""The tables of a finished target: published heads use its tokens' and its LM head's, trained ones begin with rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from paceline.export.errors import ExportError
from paceline.export.passes import Floats
from paceline.runtime.manifest import Part
from paceline.runtime.ops import packed_matmul as products


def target_table(folder: Path, target: Part) -> Floats:
    """float32[V, H], as the target of a bundle whose folder is given reads it. Raises ExportError."""
    shape, data = (target.vocab, target.hidden), folder / target.data
    for node in ir.load(folder / target.graph).graph:
        given = [None if value is None else value.const_value for value in node.inputs]
        if node.op_type == products.EMBEDDING and given[1] is not None:
            return _rows(node, given[1], given[2] if len(given) > 2 else None, data)
        if node.op_type == "Gather" and given[0] is not None and tuple(given[0].shape) == shape:
            table: Floats = _values(given[0], data).astype(np.float32)
            return table
    raise ExportError(
        f"{folder / target.graph} has no table of tokens that a head could use: export the model again"
    )


def target_head(folder: Path, target: Part) -> Floats:
    """float32[V, H], what the target's logits are products with. Raises ExportError."""
    data = folder / target.data
    for node in ir.load(folder / target.graph).graph:
        if node.op_type not in products.PRODUCTS or node.outputs[0].name != "logits":
            continue
        first = products.PRODUCTS[node.op_type].index("weights")
        given = [None if value is None else value.const_value for value in node.inputs[first : first + 2]]
        if given[0] is not None:
            return _rows(node, given[0], given[1] if len(given) > 1 else None, data)
    raise ExportError(
        f"{folder / target.graph} has no LM head that a draft head could use, or caps or scales its logits: export the "
        "model with --profile cpu, or use another head"
    )


def _rows(node: ir.Node, weights: ir.TensorProtocol, scales: ir.TensorProtocol | None, data: Path) -> Floats:
    """The matrix of a product or an embedding, a row a token."""
    sizes = {name: node.attributes[name].as_int() for name in products.ATTRIBUTES}
    read = None if scales is None or not sizes["block_size"] else _values(scales, data)
    return np.ascontiguousarray(products.dequantised(_values(weights, data), read, **sizes).T)


def _values(tensor: ir.TensorProtocol, data: Path) -> npt.NDArray[Any]:
    """A tensor that stands in the graph or in its data file; onnx_ir reads no file that has hard links."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    sizes = [int(str(size)) for size in tensor.shape]
    count, offset = int(np.prod(sizes)), tensor.offset or 0
    return np.fromfile(data, tensor.dtype.numpy(), count, offset=offset).reshape(sizes)
