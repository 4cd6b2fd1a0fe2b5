"""What `paceline::QMatMul` and its kin are: names, inputs, attributes, the packed layout, and numpy references.

A matrix `W[K, N]` (y = x W) is cut into tiles of 16 columns; N is padded to tiles and K to blocks.
With 4 and 8 bits each column of a tile has 4 consecutive numbers of K beside each other:
  4 bits   `weights` uint8[tiles, Kp/8, 64]: byte 4n + j of line L is code[8L + j, n] | code[8L + 4 + j, n] << 4
  8 bits   `weights` uint8[tiles, Kp/4, 64]: byte 4n + j of line L is code[4L + j, n]
           `scales` float16[tiles, blocks, 16] for both: W[k, n] = (code - zero point) * scale
  16, 32   `weights` float16, bfloat16 or float32[tiles, K, 16], no scales
The zero point is 8 or 128. A block is a multiple of 8 numbers of K. Padding has the zero point as its code;
padded columns have scale 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

DOMAIN = "paceline"
VERSION = 1
"""Of the layout. Another layout would be another version, and this one stays readable."""
TILE = 16

PRODUCTS = {
    "QMatMul": ("x", "weights", "scales", "bias"),
    "QMatMulAdd": ("x", "residual", "weights", "scales", "bias"),
    "NormQMatMul": ("x", "norm", "weights", "scales", "bias"),
    "QMatMulGlu": ("x", "weights", "scales", "bias"),
    "NormQMatMulGlu": ("x", "norm", "weights", "scales", "bias"),
}
"""Inputs by operator. `scales` (absent for 16 and 32 bits) and `bias[N]` may be absent; x is `[.., K]`.

Norm: x is RMS-normalised with `norm[K]` first. Add: `residual[.., N]` is added last. Glu: the first N/2 columns
are the gate, the others up, and the result is activation(gate) * up.
"""
EMBEDDING = "QEmbedding"
EMBEDDING_INPUTS = ("ids", "weights", "scales")
"""ids int64[..] -> float32[.., K]: column `id` of W, so that a tied head shares it.

An id outside [0, N) is an error.
"""

ATTRIBUTES = ("K", "N", "bits", "block_size")
"""Of all; `bits` 4, 8, 16 or 32, `block_size` 0 for the last two."""
PRODUCT_ATTRIBUTES = ("activation_bits", "epsilon", "activation")
"""`activation_bits` 8 (default) or 32; `epsilon` float where there is a norm; `activation` of ACTIVATIONS with Glu."""
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")

Floats = NDArray[np.float32]
Packed = NDArray[Any]


def zero_point(bits: int) -> int:
    """The code that stands for 0."""
    return 1 << (bits - 1)


def padded(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple


def pack_codes(codes: NDArray[np.uint8], bits: int, block: int) -> NDArray[np.uint8]:
    """Lay out codes `[K, N]` of 4 or 8 bits."""
    k, n = codes.shape
    wide = np.full((padded(k, block), padded(n, TILE)), zero_point(bits), np.uint8)
    wide[:k, :n] = codes
    lines = wide.reshape(len(wide) // 4, 4, -1, TILE).transpose(2, 0, 3, 1).reshape(-1, len(wide) // 4, 64)
    if bits == 4:
        lines = np.bitwise_or(lines[:, 0::2], np.left_shift(lines[:, 1::2], np.uint8(4)))
    return np.ascontiguousarray(lines)


def unpack_codes(weights: NDArray[np.uint8], bits: int, k: int, n: int) -> NDArray[np.uint8]:
    """Codes `[K, N]` of packed ones."""
    lines = weights
    if bits == 4:
        lines = np.stack([weights & 15, weights >> 4], axis=2)
    wide = lines.reshape(len(weights), -1, TILE, 4).transpose(1, 3, 0, 2)
    return wide.reshape(-1, len(weights) * TILE)[:k, :n]


def pack_columns(values: Packed) -> Packed:
    """Lay out weights of 16 or 32 bits `[K, N]`, or scales `[blocks, N]`."""
    rows, n = values.shape
    wide = np.zeros((rows, padded(n, TILE)), values.dtype)
    wide[:, :n] = values
    return np.ascontiguousarray(wide.reshape(rows, -1, TILE).transpose(1, 0, 2))


def unpack_columns(packed: Packed, n: int) -> Packed:
    """The inverse of `pack_columns`."""
    return packed.transpose(1, 0, 2).reshape(packed.shape[1], -1)[:, :n]


def dequantised(
    weights: Packed, scales: Packed | None, *, K: int, N: int, bits: int, block_size: int
) -> Floats:
    """The matrix `[K, N]` that packed weights stand for; bfloat16 comes as its bits in uint16."""
    if scales is None:
        values = unpack_columns(weights, N)
        if values.dtype == np.uint16:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)
    codes = unpack_codes(weights, bits, K, N).astype(np.float32) - zero_point(bits)
    columns: Floats = unpack_columns(scales, N).astype(np.float32)
    return codes * np.repeat(columns, block_size, axis=0)[:K]


def quantised_rows(x: Floats, block: int) -> tuple[NDArray[np.int64], Floats]:
    """Codes `[rows, K]` of -127 to 127 and scales `[rows, blocks]` that a product with 8-bit activations takes for x.

    A block with a number that is not finite has the scale NaN; one that is all but zero has codes and scale 0.
    """
    rows, k = x.shape
    wide = np.zeros((rows, padded(k, block)), np.float32)
    wide[:, :k] = x
    blocks = wide.reshape(rows, -1, block)
    largest = np.abs(blocks).max(axis=-1)
    finite, small = np.isfinite(largest), largest < np.float32(1e-30)
    with np.errstate(all="ignore"):
        factor = np.where(finite & ~small, np.float32(127) / largest, np.float32(0))
        codes = np.rint(np.where(finite[..., None], blocks, 0) * factor[..., None])
        scales = np.where(finite, np.where(small, 0, largest / np.float32(127)), np.nan).astype(np.float32)
    return codes.astype(np.int64).reshape(rows, -1)[:, :k], scales


def product(
    x: Floats,
    weights: Packed,
    scales: Packed | None,
    *,
    K: int,
    N: int,
    bits: int,
    block_size: int,
    activation_bits: int = 8,
) -> NDArray[np.float64]:
    """x W for x `[rows, K]`, in float64 from the int8 activations on (`activation_bits` 8) or from x (32)."""
    matrix = dequantised(weights, scales, K=K, N=N, bits=bits, block_size=block_size).astype(np.float64)
    if scales is None or activation_bits == 32:
        return x.astype(np.float64) @ matrix
    codes, of_x = quantised_rows(x, block_size)
    taken: NDArray[np.float64] = (
        codes * np.repeat(of_x.astype(np.float64), block_size, axis=1)[:, :K]
    ) @ matrix
    return taken


def rms_norm(x: Floats, norm: Floats, epsilon: float) -> Floats:
    """Scale each row to a mean square of 1, then by `norm[K]`."""
    mean = (x.astype(np.float64) ** 2).mean(axis=-1, keepdims=True)
    normed: Floats = (x / np.sqrt(mean + epsilon)).astype(np.float32) * norm
    return normed


def activated(columns: NDArray[np.float64], activation: str) -> NDArray[np.float64]:
    """activation(gate) * up for `[.., N]`; one of ACTIVATIONS."""
    gate, up = np.split(columns, 2, axis=-1)
    bent: NDArray[np.float64]
    if activation == "silu":
        bent = 0.5 * gate * (1 + np.tanh(gate / 2))
    elif activation == "gelu_tanh":
        bent = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    elif activation == "gelu":
        bent = 0.5 * gate * (1 + np.vectorize(math.erf)(gate / math.sqrt(2)))
    else:
        raise ValueError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    taken: NDArray[np.float64] = bent * up
    return taken
