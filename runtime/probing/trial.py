"""A graph of a few nodes whose results are known: what a device is tried with.

It is written as bytes by the format of ONNX, for the runtime has no library that writes graphs.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_ROWS, _COLUMNS, _OUTPUTS = 4, 64, 96
_EPSILON = 1e-5
_FLOAT = 1
"""ONNX's number of float32."""
TOLERANCE = 1e-2
"""Results are chances, 0 to 1; devices that compute in 16 bits came within 2e-3."""


class Trial:
    """A norm, a product and a softmax, as every decoder has them: the graph, its input and what has to come out."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.x: Floats = rng.standard_normal((_ROWS, _COLUMNS)).astype(np.float32)
        scale = rng.uniform(0.5, 1.5, _COLUMNS).astype(np.float32)
        weights = (0.3 * rng.standard_normal((_COLUMNS, _OUTPUTS))).astype(np.float32)
        unit = self.x / np.sqrt((self.x**2).mean(-1, keepdims=True) + _EPSILON)
        raised = np.exp(unit * scale @ weights)
        self.y: Floats = (raised / raised.sum(-1, keepdims=True)).astype(np.float32)
        self.graph = _graph(scale, weights)


def _graph(scale: Floats, weights: Floats) -> bytes:
    axis = _bytes(1, b"axis") + _number(3, -1) + _number(20, 2)
    epsilon = _bytes(1, b"epsilon") + b"\x15" + struct.pack("<f", _EPSILON) + _number(20, 1)
    nodes = (
        _node("SimplifiedLayerNormalization", ("x", "scale"), "normed", axis, epsilon),
        _node("MatMul", ("normed", "weights"), "product"),
        _node("Softmax", ("product",), "y", axis),
    )
    graph = b"".join(
        (
            *(_bytes(1, node) for node in nodes),
            _bytes(2, b"trial"),
            _bytes(5, _tensor("scale", scale)),
            _bytes(5, _tensor("weights", weights)),
            _bytes(11, _value("x", (_ROWS, _COLUMNS))),
            _bytes(12, _value("y", (_ROWS, _OUTPUTS))),
        )
    )
    opset = _bytes(1, b"") + _number(2, 21)
    return _number(1, 10) + _bytes(7, graph) + _bytes(8, opset)


def _node(operator: str, inputs: Sequence[str], output: str, *attributes: bytes) -> bytes:
    return b"".join(
        (
            *(_bytes(1, name.encode()) for name in inputs),
            _bytes(2, output.encode()),
            _bytes(3, output.encode()),
            _bytes(4, operator.encode()),
            *(_bytes(5, attribute) for attribute in attributes),
        )
    )


def _tensor(name: str, array: Floats) -> bytes:
    sizes = b"".join(_number(1, size) for size in array.shape)
    return sizes + _number(2, _FLOAT) + _bytes(8, name.encode()) + _bytes(9, array.tobytes())


def _value(name: str, shape: Sequence[int]) -> bytes:
    sizes = b"".join(_bytes(1, _number(1, size)) for size in shape)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, sizes)))


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
