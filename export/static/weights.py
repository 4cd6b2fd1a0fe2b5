"""The weights that static graphs alone read, in a file of their own; what the part's file has already is read there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from paceline.export.weights import append_weights
from paceline.runtime.buckets import STATIC_DATA

_Key = tuple[ir.DataType, tuple[int, ...], bytes]


def write_apart(
    tensors: Mapping[str, ir.TensorProtocol], graph: ir.Model, folder: Path
) -> dict[str, ir.TensorProtocol]:
    """Put tensors into the folder of a written graph, by their names, and return them as they stand there.

    graph: whose weights stand in the part's own file. One that is equal to one of those is not stored again.
    """
    (folder / STATIC_DATA).touch()
    there = [
        value.const_value
        for value in graph.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    ]
    shapes = {(tensor.dtype, tuple(tensor.shape.numpy())) for tensor in tensors.values()}
    known = {_key(t): t for t in there if (t.dtype, tuple(t.shape.numpy())) in shapes}
    placed = dict[str, ir.TensorProtocol]()
    for name, tensor in tensors.items():
        if (found := known.get(_key(tensor))) is not None:
            placed[name] = _called(found, str(tensor.name), folder)
        else:
            [placed[name]] = append_weights([tensor], folder, STATIC_DATA)
    return placed


def bytes_of(tensors: Iterable[ir.TensorProtocol]) -> int:
    """What these take in files, each place counted once."""
    places = {(t.location, t.offset): t.nbytes for t in tensors if isinstance(t, ir.ExternalTensor)}
    return sum(places.values())


def _called(tensor: ir.ExternalTensor, name: str, folder: Path) -> ir.ExternalTensor:
    """The same place under another name."""
    return ir.ExternalTensor(
        str(tensor.location),
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
        base_dir=folder,
    )


def _key(tensor: ir.TensorProtocol) -> _Key:
    raw = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
    return tensor.dtype, tuple(int(size) for size in tensor.shape.numpy()), hashlib.sha256(raw.data).digest()
