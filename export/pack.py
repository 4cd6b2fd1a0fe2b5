"""A matrix in the packed layout that the native kernels read (see paceline.runtime.ops.packed_matmul), and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.export.quantize import Floats, Quantised
from paceline.runtime.ops.packed_matmul import TILE, zero_point

_LINE = 64
_CHUNK = 1 << 22

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix [K, N] in packed layout.

    bits 4 or 8: weights uint8[tiles, padded K * bits / 32, 64], scales float16[tiles, blocks, 16], and `block` is
    how many rows share a scale. bits 16 or 32: weights float16, bfloat16 or float32[tiles, K, 16], scales None
    and block 0.
    """

    weights: npt.NDArray[Any]
    scales: npt.NDArray[np.float16] | None
    bits: int
    block: int
    k: int
    n: int

    def columns(self, start: int, stop: int) -> Packed:
        """Columns start..stop as a matrix of their own. `start` is a multiple of 16."""
        tiles = slice(start // TILE, tiles_of(stop))
        scales = None if self.scales is None else self.scales[tiles]
        return Packed(self.weights[tiles], scales, self.bits, self.block, self.k, stop - start)

    def dense(self) -> Floats:
        """The matrix that is meant, float32[K, N]."""
        if self.scales is None:
            flat = self.weights.transpose(1, 0, 2).reshape(self.k, -1)
            return flat[:, : self.n].astype(np.float32)
        tiles, lines = self.weights.shape[:2]
        lanes = self.weights.reshape(tiles, lines, TILE, 4)
        codes = np.concatenate([lanes & 15, lanes >> 4], axis=-1) if self.bits == 4 else lanes
        rows = codes.transpose(0, 2, 1, 3).reshape(tiles * TILE, -1, self.block).astype(np.float32)
        scales = self.scales.transpose(0, 2, 1).reshape(tiles * TILE, -1, 1).astype(np.float32)
        values: Floats = ((rows - zero_point(self.bits)) * scales).reshape(tiles * TILE, -1)
        return values[: self.n, : self.k].T


def tiles_of(n: int) -> int:
    """Tiles that n columns take."""
    return -(-n // TILE)


def pack(quantised: Quantised) -> Packed:
    """Reorder a quantised matrix, whose scales must be float16."""
    if quantised.scales.dtype != np.float16:
        raise ValueError(f"the packed layout holds float16 scales, not {quantised.scales.dtype}")
    n, blocks, size = quantised.packed.shape
    rows = quantised.packed.reshape(n, blocks * size)
    turn = _lines4 if quantised.bits == 4 else _lines8
    weights = np.empty((tiles_of(n), rows.shape[1] // 4, _LINE), np.uint8)
    zero = 0x88 if quantised.bits == 4 else zero_point(8)
    for start, stop in _chunks(tiles_of(n), TILE * rows.shape[1]):
        part = _filled(rows[start * TILE : stop * TILE], (stop - start) * TILE, zero)
        weights[start:stop] = turn(part.reshape(stop - start, TILE, -1, 4)).reshape(stop - start, -1, _LINE)
    scales = _filled(quantised.scales.reshape(n, blocks), tiles_of(n) * TILE, 0)
    scales = np.ascontiguousarray(scales.reshape(-1, TILE, blocks).transpose(0, 2, 1))
    return Packed(weights, scales, quantised.bits, quantised.block, quantised.k, n)


def pack_floats(weight: Floats, kind: Any) -> npt.NDArray[Any]:
    """Tiles of float32[K, N] in another float type: kind[tiles, K, 16]. Written piece by piece."""
    k, n = weight.shape
    packed = np.zeros((tiles_of(n), k, TILE), kind)
    for start, stop in _chunks(tiles_of(n), TILE * k):
        part = weight[:, start * TILE : stop * TILE].astype(kind)
        if part.shape[1] < (stop - start) * TILE:
            part = np.pad(part, ((0, 0), (0, (stop - start) * TILE - part.shape[1])))
        packed[start:stop] = part.reshape(k, -1, TILE).transpose(1, 0, 2)
    return packed


def _lines4(rows: Bytes) -> Bytes:
    """uint8[tiles, 16, L, 4] of neighbours in a byte (0 1, 2 3, 4 5, 6 7) to lines (0 4, 1 5, 2 6, 3 7)."""
    low, high = rows[..., :2], rows[..., 2:]
    lines = np.empty(rows.shape, np.uint8)
    lines[..., 0::2] = (low & 15) | (high << 4)
    lines[..., 1::2] = (low >> 4) | (high & 240)
    return _lines8(lines)


def _lines8(rows: Bytes) -> Bytes:
    return np.ascontiguousarray(rows.transpose(0, 2, 1, 3))


def _filled(rows: npt.NDArray[Any], count: int, value: int) -> npt.NDArray[Any]:
    if len(rows) == count:
        return rows
    more = np.full((count - len(rows), *rows.shape[1:]), value, rows.dtype)
    return np.concatenate([rows, more])


def _chunks(tiles: int, each: int) -> Iterator[tuple[int, int]]:
    """Runs of tiles of which each has `each` elements: temporaries stay small."""
    step = max(1, _CHUNK // max(1, each))
    for start in range(0, tiles, step):
        yield start, min(tiles, start + step)
