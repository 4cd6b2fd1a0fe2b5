"""A matrix in the packed layout that the native kernels read (see paceline.runtime.ops.packed_matmul), and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.export.quantize import Codes, Floats, Quantised
from paceline.runtime.ops import packed_matmul as contract
from paceline.runtime.ops.packed_matmul import LINE, TILE, UNIT, zero_point

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix [K, N] in packed layout.

    bits 4 to 8: weights uint8[tiles, padded K * bits / 32, 64], scales float16[tiles, blocks, 16] (32 with minima),
    and `block` is how many rows share a scale. bits 16 or 32: weights float16, bfloat16 or float32[tiles, K, 16],
    scales None and block 0.
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

    def chosen(self, columns: npt.NDArray[np.int64]) -> Packed:
        """These columns, in this order, as a matrix of their own: with the same codes and scales."""
        each = LINE // TILE if self.scales is not None else 1
        scales = None if self.scales is None else _chosen(self.scales, columns, 1)
        weights = _chosen(self.weights, columns, each)
        return Packed(weights, scales, self.bits, self.block, self.k, len(columns))

    def dense(self) -> Floats:
        """The matrix that is meant, float32[K, N]."""
        return contract.dequantised(
            self.weights, self.scales, K=self.k, N=self.n, bits=self.bits, block_size=self.block
        )


def tiles_of(n: int) -> int:
    """Tiles that n columns take."""
    return -(-n // TILE)


def pack(quantised: Quantised) -> Packed:
    """Reorder a quantised matrix, whose scales must be float16."""
    if quantised.scales.dtype != np.float16:
        raise ValueError(f"the packed layout holds float16 scales, not {quantised.scales.dtype}")
    bits, (n, rows) = quantised.bits, quantised.codes.shape
    padding = zero_point(bits) if quantised.minima is None else 0
    weights = np.empty((tiles_of(n), rows * bits // 32, LINE), np.uint8)
    for start, stop in _chunks(tiles_of(n), TILE * rows):
        part = _filled(quantised.codes[start * TILE : stop * TILE], (stop - start) * TILE, padding)
        _write_lines(_quads(part), bits, weights[start:stop])
    scales = _columns(quantised.scales)
    if quantised.minima is not None:
        scales = np.concatenate([scales, _columns(quantised.minima)], axis=-1)
    return Packed(weights, scales, bits, quantised.block, quantised.k, n)


def _quads(codes: Codes) -> Codes:
    """uint8[columns, rows] to uint8[tiles, rows / 4, 64]; four rows of a column move as one word."""
    words = np.ascontiguousarray(codes).view(np.uint32).reshape(-1, TILE, codes.shape[1] // 4)
    return np.ascontiguousarray(words.transpose(0, 2, 1)).view(np.uint8)


def _write_lines(quads: Codes, bits: int, lines: Codes) -> None:
    """Write quads as lines of the layout, uint8[tiles, rows * bits / 32, 64]."""
    if bits == 8:
        lines[:] = quads
        return
    unit, more = UNIT[bits] // 4, bits - 4
    units = quads.reshape(len(quads), -1, unit, LINE)
    placed = lines.reshape(len(quads), units.shape[1], -1, LINE)
    low = placed[:, :, 1:] if more else placed
    np.left_shift(units[:, :, 1::2], np.uint8(4), out=low)
    low |= units[:, :, 0::2] & np.uint8(15)
    if more:
        upper = units >> np.uint8(4)
        placed[:, :, 0] = upper[:, :, 0]
        for quad in range(1, unit):
            placed[:, :, 0] |= upper[:, :, quad] << np.uint8(more * quad)


def _columns(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[columns, blocks] to [tiles, blocks, 16]."""
    wide = _filled(values, tiles_of(len(values)) * TILE, 0)
    return np.ascontiguousarray(wide.reshape(-1, TILE, values.shape[1]).transpose(0, 2, 1))


def _chosen(tiles: npt.NDArray[Any], columns: npt.NDArray[np.int64], each: int) -> npt.NDArray[Any]:
    """Of kind[tiles, lines, groups * 16 * each], where every column has `each` beside each other, these columns."""
    lines, width = tiles.shape[1:]
    wide = tiles.reshape(len(tiles), lines, -1, TILE, each)
    found = wide[columns // TILE, :, :, columns % TILE]
    placed = _filled(found, tiles_of(len(columns)) * TILE, 0).reshape(-1, TILE, *found.shape[1:])
    return np.ascontiguousarray(placed.transpose(0, 2, 3, 1, 4)).reshape(-1, lines, width)


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
