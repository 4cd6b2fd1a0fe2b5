"""Graphs of a few nodes, written as bytes by the format of ONNX: the runtime has no library that writes graphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_KINDS = {np.dtype(np.float32): 1, np.dtype(np.int32): 6, np.dtype(np.int64): 7, np.dtype(np.float16): 10}
"""ONNX's numbers of types."""
_OPSET, _IR = 21, 10


def small_graph(
    name: str, nodes: Iterable[bytes], inputs: Iterable[bytes], outputs: Iterable[bytes], *constants: bytes
) -> bytes:
    """A whole model of what the functions below make."""
    graph = b"".join(
        (
            *(_bytes(1, node) for node in nodes),
            _bytes(2, name.encode()),
            *(_bytes(5, constant) for constant in constants),
            *(_bytes(11, value) for value in inputs),
            *(_bytes(12, value) for value in outputs),
        )
    )
    return _number(1, _IR) + _bytes(7, graph) + _bytes(8, _bytes(1, b"") + _number(2, _OPSET))


def node(operator: str, inputs: Sequence[str], output: str, *attributes: bytes) -> bytes:
    """A node with one output, of whose name it is."""
    return b"".join(
        (
            *(_bytes(1, name.encode()) for name in inputs),
            _bytes(2, output.encode()),
            _bytes(3, output.encode()),
            _bytes(4, operator.encode()),
            *(_bytes(5, attribute) for attribute in attributes),
        )
    )


def whole(name: str, number: int) -> bytes:
    """An attribute of one whole number."""
    return _bytes(1, name.encode()) + _number(3, number) + _number(20, 2)


def real(name: str, number: float) -> bytes:
    """An attribute of one float."""
    return _bytes(1, name.encode()) + b"\x15" + np.array(number, "<f4").tobytes() + _number(20, 1)


def tensor(name: str, array: npt.NDArray[Any]) -> bytes:
    """A constant."""
    sizes = b"".join(_number(1, size) for size in array.shape)
    return sizes + _number(2, _KINDS[array.dtype]) + _bytes(8, name.encode()) + _bytes(9, array.tobytes())


def value(name: str, kind: npt.DTypeLike, shape: Sequence[int | str]) -> bytes:
    """An input or output. shape: numbers, and names of free sizes."""
    sizes = b"".join(
        _bytes(1, _bytes(2, size.encode()) if isinstance(size, str) else _number(1, size)) for size in shape
    )
    typed = _number(1, _KINDS[np.dtype(kind)]) + _bytes(2, sizes)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, typed))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
