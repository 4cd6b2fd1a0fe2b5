"""The tables of a finished target: published heads use its tokens' and its LM head's, trained ones begin with rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from paceline.export.errors import ExportError
from paceline.export.pack import Packed
from paceline.export.passes import Floats
from paceline.runtime.manifest import Part
from paceline.runtime.ops import packed_matmul as products


def target_table(folder: Path, target: Part) -> Floats:
    """float32[V, H], as the target of a bundle whose folder is given reads it. Raises ExportError."""
    shape, data = (target.vocab, target.hidden), folder / target.data
    for node in ir.load(folder / target.graph).graph:
        given = [None if value is None else value.const_value for value in node.inputs]
        if node.op_type == products.EMBEDDING and given[1] is not None:
            return _rows(node, data)
        if node.op_type == "Gather" and given[0] is not None and tuple(given[0].shape) == shape:
            table: Floats = _values(given[0], data).astype(np.float32)
            return table
    raise ExportError(
        f"{folder / target.graph} has no table of tokens that a head could use: export the model again"
    )


def target_head(folder: Path, target: Part) -> Floats:
    """float32[V, H], what the target's logits are products with. Raises ExportError."""
    for node in ir.load(folder / target.graph).graph:
        if node.op_type in products.PRODUCTS and node.outputs[0].name == "logits":
            return _rows(node, folder / target.data)
    raise ExportError(
        f"{folder / target.graph} has no LM head that a draft head could use, or caps or scales its logits: export the "
        "model with --profile cpu, or use another head"
    )


def packed_of(node: ir.Node, data: Path) -> Packed:
    """The matrix of a product or an embedding of a finished graph, whose large tensors are in a file."""
    sizes = {name: node.attributes[name].as_int() for name in products.ATTRIBUTES}
    first = products.PRODUCTS.get(node.op_type, products.EMBEDDING_INPUTS).index("weights")
    count = 2 if sizes["block_size"] else 1
    given = [value.const_value for value in node.inputs[first : first + count] if value is not None]
    weights, *scales = [_values(tensor, data) for tensor in given if tensor is not None]
    return Packed(
        weights, scales[0] if scales else None, sizes["bits"], sizes["block_size"], sizes["K"], sizes["N"]
    )


def _rows(node: ir.Node, data: Path) -> Floats:
    """The same as numbers, a row a token."""
    return np.ascontiguousarray(packed_of(node, data).dense().T)


def _values(tensor: ir.TensorProtocol, data: Path) -> npt.NDArray[Any]:
    """A tensor that stands in the graph or in its data file; onnx_ir reads no file that has hard links."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    sizes = [int(str(size)) for size in tensor.shape]
    count, offset = int(np.prod(sizes)), tensor.offset or 0
    return np.fromfile(data, tensor.dtype.numpy(), count, offset=offset).reshape(sizes)
