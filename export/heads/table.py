"""The table of tokens of a finished target: published heads use it as theirs, trained ones begin with its rows."""

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
            sizes = {name: node.attributes[name].as_int() for name in products.ATTRIBUTES}
            scales = None if len(given) < 3 or given[2] is None else _values(given[2], data)
            return np.ascontiguousarray(products.dequantised(_values(given[1], data), scales, **sizes).T)
        if node.op_type == "Gather" and given[0] is not None and tuple(given[0].shape) == shape:
            table: Floats = _values(given[0], data).astype(np.float32)
            return table
    raise ExportError(
        f"{folder / target.graph} has no table of tokens that a head could use: export the model again"
    )


def _values(tensor: ir.TensorProtocol, data: Path) -> npt.NDArray[Any]:
    """A tensor that stands in the graph or in its data file; onnx_ir reads no file that has hard links."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    sizes = [int(str(size)) for size in tensor.shape]
    count, offset = int(np.prod(sizes)), tensor.offset or 0
    return np.fromfile(data, tensor.dtype.numpy(), count, offset=offset).reshape(sizes)
