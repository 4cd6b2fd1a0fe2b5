"""Matrices as codes and scales in blocks, and the symmetric rounding that makes them of plain values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.runtime.ops.packed_matmul import MINIMUM_BITS, UNIT, zero_point

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

BITS = {"int4": 4, "int8": 8}
BLOCKS = {"int4": 128, "int8": 32}
_CHUNK = 1 << 18
_HALF_NORMAL = float(np.finfo(np.float16).smallest_normal)
# The largest element of a block is mapped to about minus this many steps; the best one is kept.
_STEPS = {
    4: (6.7, 7.0, 7.25, 7.5, 7.75, 8.0, 8.3, 8.7, 9.2),
    5: (14.0, 14.7, 15.3, 16.0, 16.6),
    6: (30.2, 31.2, 32.0),
    8: (126.5, 127.3, 128.0),
}
# The largest code of a block that lies on a 4-bit grid already.
_GRID = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)


@dataclass(frozen=True, slots=True)
class Quantised:
    """A matrix [K, N] in blocks of `block` along K: (code - 2 ** (bits - 1)) * scale, or code * scale + minimum.

    codes: uint8[N, padded K], each below 2 ** bits; K is padded to whole blocks by what stands for 0, or by 0 where
    there are minima. scales: float16 (or float32 where half precision would lose digits) [N, blocks]. minima:
    float16[N, blocks], with 4 to 6 bits, or None. error: root of the squared error over the squared weights. exact:
    products by it take their inputs as they are, not rounded to 8 bits.
    Raises ValueError for shapes that do not fit each other and for bits and blocks that no layout has.
    """

    codes: Codes
    scales: npt.NDArray[np.floating[Any]]
    minima: npt.NDArray[np.float16] | None
    bits: int
    block: int
    k: int
    error: float
    exact: bool = False

    def __post_init__(self) -> None:
        if self.bits not in UNIT or self.block % UNIT[self.bits] or self.block < 1:
            raise ValueError(f"there are no blocks of {self.block} codes of {self.bits} bits")
        blocks = len(self.codes), -(-self.k // self.block)
        minima = self.scales if self.minima is None else self.minima
        if self.minima is not None and self.bits not in MINIMUM_BITS:
            raise ValueError(f"codes of {self.bits} bits have no minima")
        if (self.scales.shape, minima.shape) != (blocks, blocks):
            raise ValueError(f"scales or minima have not the shape {list(blocks)}, one for each block")
        if self.codes.shape[1] != blocks[1] * self.block:
            raise ValueError(f"codes have {self.codes.shape[1]} columns, not whole blocks of {self.block}")

    @property
    def n(self) -> int:
        """Columns of the matrix."""
        return len(self.codes)

    def columns(self, start: int, stop: int) -> Quantised:
        """Columns start..stop as a matrix of their own, with the error of the whole."""
        minima = None if self.minima is None else self.minima[start:stop]
        return replace(self, codes=self.codes[start:stop], scales=self.scales[start:stop], minima=minima)

    def dense(self, start: int, stop: int) -> Floats:
        """Columns start..stop of the matrix that is meant, as float32[stop - start, K]."""
        part = self.columns(start, stop)
        values = part.codes.reshape(part.n, -1, self.block).astype(np.float32)
        if part.minima is None:
            values -= np.float32(zero_point(self.bits))
        values *= part.scales[:, :, None].astype(np.float32)
        if part.minima is not None:
            values += part.minima[:, :, None].astype(np.float32)
        return values.reshape(part.n, -1)[:, : self.k]


def quantise(weight: Floats, bits: int, block: int, *, gridded: bool = False) -> Quantised:
    """Quantise float32[K, N] with the scale of least squared error for each block of a column.

    K need not be a multiple of the block: the last one is filled with zeros. A block longer than K is
    shortened to the next power of two from 32 up. With `gridded` a block that is 4-bit codes times a
    half-precision scale already, as calibration leaves it, is stored exactly as it is.
    """
    k, n = weight.shape
    while block > 32 and block // 2 >= k:
        block //= 2
    blocks = -(-k // block)
    codes = np.empty((n, blocks * block), np.uint8)
    scales = np.empty((n, blocks), np.float32)
    rows = max(1, _CHUNK // (blocks * block))
    guesses = _GRID + _STEPS[4] if gridded and bits == 4 else _STEPS[bits]
    lost = total = 0.0
    for start in range(0, n, rows):
        part = np.zeros((min(rows, n - start), blocks * block), np.float32)
        part[:, :k] = weight[:, start : start + rows].T
        values = part.reshape(-1, block)
        scale = _to_storable(_best_scales(values, bits, guesses))
        signed = _codes(values, scale, bits)
        error = signed * scale[:, None]
        error -= values
        lost += float(np.vdot(error, error))
        total += float(np.vdot(values, values))
        signed += zero_point(bits)
        codes[start : start + rows] = signed.reshape(len(part), -1)
        scales[start : start + rows] = scale.reshape(len(part), blocks)
    stored = scales.astype(np.float16) if fits_half(scales) else scales
    return Quantised(codes, stored, None, bits, block, k, float(np.sqrt(lost / total)) if total else 0.0)


def _best_scales(values: Floats, bits: int, guesses: tuple[float, ...]) -> Floats:
    """For float32[B, block] the scale of each block, float32[B].

    For given codes q the best scale is w.q / q.q, and it lowers the squared error by (w.q)^2 / q.q: so the
    codes of a few first guesses are compared by that figure alone.
    """
    top = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)
    safe = np.where(top == 0, np.float32(1), top)
    best = np.full(len(values), -1, np.float32)
    scales = np.zeros(len(values), np.float32)
    codes = np.empty_like(values)
    low, high = -float(1 << (bits - 1)), float((1 << (bits - 1)) - 1)
    for steps in guesses:
        np.multiply(values, np.float32(-steps) / safe, out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, low, high, out=codes)
        along = np.einsum("ij,ij->i", values, codes)
        square = np.einsum("ij,ij->i", codes, codes)
        np.maximum(square, 1, out=square)
        gain = along * along / square
        better = gain > best
        best[better] = gain[better]
        scales[better] = (along / square)[better]
    return scales


def _to_storable(scales: Floats) -> Floats:
    """Round to half precision where that keeps eleven bits, so that the codes fit what is stored."""
    if not fits_half(scales):
        return scales
    rounded: Floats = scales.astype(np.float16).astype(np.float32)
    return rounded


def fits_half(scales: Floats) -> bool:
    """Whether half precision keeps eleven bits of every scale."""
    size = np.abs(scales)
    return bool(((size == 0) | ((size >= _HALF_NORMAL) & (size < 65504))).all())


def _codes(values: Floats, scale: Floats, bits: int) -> Floats:
    """The nearest code of every value, as float32 integers."""
    safe = np.where(scale == 0, np.float32(1), scale)[:, None]
    codes: Floats = np.divide(values, safe, dtype=np.float32)
    np.rint(codes, out=codes)
    np.clip(codes, -float(1 << (bits - 1)), float((1 << (bits - 1)) - 1), out=codes)
    return codes
