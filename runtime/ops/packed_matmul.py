"""What `paceline::QMatMul` and its kin are: names, inputs, attributes, the packed layout, and numpy references.

A matrix `W[K, N]` (y = x W) is cut into tiles of 16 columns; N is padded to tiles and K to blocks.
With 4 to 8 bits each column of a tile has 4 consecutive numbers of K beside each other, a quad; `weights` is
uint8[tiles, Kp * bits / 32, 64], and of each quad a line of 64 bytes has byte 4n + j for number j and column n:
  4 bits   line L is quad 2L | quad 2L + 1 << 4
  8 bits   line L is quad L
  5 bits   32 numbers of K are 5 lines: first the fifth bits, that of quad q in bit q of the line, then 4 lines
           with the low bits, as with 4 bits
  6 bits   16 numbers of K are 3 lines: first the upper two bits, those of quad q in bits 2q and 2q + 1 of the
           line, then 2 lines with the low bits, as with 4 bits
  `scales` float16[tiles, blocks, 16]: W[k, n] = (code - zero point) * scale, zero point 2 ** (bits - 1); or
           float16[tiles, blocks, 32], scales and then minima, with up to 6 bits: W[k, n] = code * scale + minimum
  16, 32   `weights` float16, bfloat16 or float32[tiles, K, 16], no scales
A block is a multiple of 8 numbers of K, of 32 with 5 bits and of 16 with 6. Padding of K has the zero point as its
code, or 0 beside minima, and x counts as 0 there; padded columns have scale and minimum 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

DOMAIN = "paceline"
VERSION = 2
"""Of the layout. Version 1 had no 5 and 6 bits and no minima; all else is the same."""
TILE = 16
LINE = 64
CODE_BITS = (4, 5, 6, 8)
UNIT = {4: 8, 5: 32, 6: 16, 8: 8}
"""Numbers of K of which a block is a multiple, by bits."""
MINIMUM_BITS = (4, 5, 6)

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
"""Of all; `bits` 4, 5, 6, 8, 16 or 32, `block_size` 0 for the last two."""
PRODUCT_ATTRIBUTES = ("activation_bits", "epsilon", "activation")
"""`activation_bits` 8 (default) or 32; `epsilon` float where there is a norm; `activation` of ACTIVATIONS with Glu."""
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")

Floats = NDArray[np.float32]
Packed = NDArray[Any]


def zero_point(bits: int) -> int:
    """The code that stands for 0."""
    return 1 << (bits - 1)


def layout_of(bits: int, minimum: bool) -> int:
    """The version of the layout that first had such weights."""
    return 2 if minimum or bits in (5, 6) else 1


def padded(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple


def pack_codes(
    codes: NDArray[np.uint8], bits: int, block: int, *, minimum: bool = False
) -> NDArray[np.uint8]:
    """Lay out codes `[K, N]` of 4 to 8 bits; `minimum` says that scales have minima beside them."""
    k, n = codes.shape
    wide = np.full((padded(k, block), padded(n, TILE)), 0 if minimum else zero_point(bits), np.uint8)
    wide[:k, :n] = codes
    quads = wide.reshape(len(wide) // 4, 4, -1, TILE).transpose(2, 0, 3, 1).reshape(-1, len(wide) // 4, LINE)
    if bits == 8:
        return np.ascontiguousarray(quads)
    low = np.bitwise_or(quads[:, 0::2] & 15, np.left_shift(quads[:, 1::2] & 15, np.uint8(4)))
    if bits == 4:
        return np.ascontiguousarray(low)
    unit = UNIT[bits] // 4
    more = bits - 4
    upper = (quads >> np.uint8(4)).reshape(len(quads), -1, unit, LINE)
    shifts = (np.arange(unit, dtype=np.uint8) * np.uint8(more))[:, None]
    first = np.bitwise_or.reduce(upper << shifts, axis=2)[:, :, None]
    lines = np.concatenate([first, low.reshape(len(quads), -1, unit // 2, LINE)], axis=2)
    return lines.reshape(len(quads), -1, LINE)


def unpack_codes(weights: NDArray[np.uint8], bits: int, k: int, n: int) -> NDArray[np.uint8]:
    """Codes `[K, N]` of packed ones."""
    quads = weights
    if bits != 8:
        unit, more = UNIT[bits] // 4, bits - 4
        extra = 1 if more else 0
        units = weights.reshape(len(weights), -1, unit // 2 + extra, LINE)
        low = units[:, :, extra:]
        split = np.stack([low & 15, low >> 4], axis=3).reshape(len(weights), -1, unit, LINE)
        if more:
            shifts = (np.arange(unit, dtype=np.uint8) * np.uint8(more))[:, None]
            upper = (units[:, :, :1] >> shifts) & np.uint8((1 << more) - 1)
            split = split | (upper << np.uint8(4))
        quads = split.reshape(len(weights), -1, LINE)
    wide = quads.reshape(len(weights), -1, TILE, 4).transpose(1, 3, 0, 2)
    return wide.reshape(-1, len(weights) * TILE)[:k, :n]


def pack_scales(
    scales: NDArray[np.float16], minima: NDArray[np.float16] | None = None
) -> NDArray[np.float16]:
    """Lay out scales, and minima if there are any, `[blocks, N]` each."""
    packed: NDArray[np.float16] = pack_columns(scales)
    return packed if minima is None else np.concatenate([packed, pack_columns(minima)], axis=-1)


def unpack_scales(
    packed: NDArray[np.float16], n: int
) -> tuple[NDArray[np.float16], NDArray[np.float16] | None]:
    """Scales and minima `[blocks, N]` of packed ones; None where there are no minima."""
    minima = unpack_columns(packed[..., TILE:], n) if has_minimum(packed.shape) else None
    return unpack_columns(packed[..., :TILE], n), minima


def has_minimum(shape: tuple[int, ...]) -> bool:
    """Whether scales of this shape have minima beside them."""
    return shape[-1] == 2 * TILE


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
    columns, minima = unpack_scales(scales, N)
    wide: Floats = np.repeat(columns.astype(np.float32), block_size, axis=0)[:K]
    codes = unpack_codes(weights, bits, K, N).astype(np.float32)
    if minima is None:
        return (codes - zero_point(bits)) * wide
    return codes * wide + np.repeat(minima.astype(np.float32), block_size, axis=0)[:K]


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
