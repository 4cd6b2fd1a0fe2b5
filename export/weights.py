"""Writing a graph and its weights: one tensor in memory at a time, aligned so that it can be mapped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from paceline.export.passes import sizes
from paceline.runtime.manifest import Dtype, Weight

GRAPH = "model.onnx"
DATA = "model.onnx.data"

LEAST = 1024
"""Bytes of a weight that stands in the data file; smaller ones stay in the graph."""
_PAGE = 4096
_LINE = 64
_PIECE = 1 << 26
_LARGE = 1 << 16
"""Bytes from which a weight is listed, so that the runtime may load it by itself."""
_DTYPES: dict[ir.DataType, Dtype] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "uint8",
}


def draft_name(depth: int) -> str:
    """The file of a graph that drafts so many levels."""
    return f"draft.{depth}.onnx"


def write_model(
    model: ir.Model, folder: Path, progress: Callable[[float], None]
) -> tuple[dict[str, Weight], int]:
    """Write model.onnx and model.onnx.data; return where the large weights stand, and the bytes of both files.

    Afterwards the weights of `model` refer to the file, and what they were made from can be freed. Tensors of
    a page or more start at a page, smaller ones at 64 bytes; those below 1 KiB stay in the graph file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    common.ClearMetadataAndDocStringPass()(model)
    weights = [v for v in model.graph.initializers.values() if _bytes(v) >= LEAST]
    for value in model.graph.initializers.values():
        if value.const_value is not None and _bytes(value) < LEAST:
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    total = sum(_bytes(v) for v in weights) or 1
    done = 0
    with (folder / DATA).open("wb") as file:
        for value in weights:
            _append(file, value, folder)
            done += _bytes(value)
            progress(done / total)
        _sync(file)
    with (folder / GRAPH).open("wb") as file:
        file.write(ir.to_proto(model).SerializeToString())
        _sync(file)
    size = (folder / GRAPH).stat().st_size + (folder / DATA).stat().st_size
    return {str(v.name): _place(v) for v in weights if _listed(v)}, size


def append_weights(
    tensors: Iterable[ir.TensorProtocol], folder: Path, name: str = DATA
) -> list[ir.TensorProtocol]:
    """Put more tensors behind the weights that were written to this folder, where they are large, and return them.

    name: of the file that they stand in.
    """
    kept: list[ir.TensorProtocol] = []
    with (folder / name).open("ab") as file:
        for tensor in tensors:
            value = ir.val(str(tensor.name), tensor.dtype, tensor.shape.numpy(), const_value=tensor)
            if _bytes(value) >= LEAST:
                _append(file, value, folder, name)
            assert value.const_value is not None
            kept.append(value.const_value)
        _sync(file)
    return kept


def _listed(value: ir.Value) -> bool:
    return value.dtype in _DTYPES and _bytes(value) >= _LARGE


def _place(value: ir.Value) -> Weight:
    tensor = value.const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.offset is not None
    return Weight(dtype=_DTYPES[tensor.dtype], shape=sizes(value), offset=tensor.offset)


def _append(file: IO[bytes], value: ir.Value, folder: Path, name: str = DATA) -> None:
    tensor = value.const_value
    assert tensor is not None
    assert value.name is not None
    size = int(tensor.nbytes)
    align = _PAGE if size >= _PAGE else _LINE
    offset = -(-file.tell() // align) * align
    file.write(b"\0" * (offset - file.tell()))
    raw = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
    if raw.nbytes != size:
        raise ValueError(f"the weight {value.name} has {raw.nbytes} bytes, its type and shape say {size}")
    for at in range(0, size, _PIECE):
        file.write(raw[at : at + _PIECE].data)
    value.const_value = ir.ExternalTensor(
        name, offset, size, tensor.dtype, shape=ir.Shape(sizes(value)), name=value.name, base_dir=folder
    )


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else int(value.const_value.nbytes)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
