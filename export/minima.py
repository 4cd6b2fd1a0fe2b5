"""Plain rounding to 4 to 6 bits with a minimum for each block, without torch."""

from __future__ import annotations

import numpy as np

from paceline.export.quantize import Floats, Quantised, fits_half, quantise

_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Of a block's range that are tried; the least squared error wins, as in `feedback`."""
_REFITS = 2
_CHUNK = 1 << 18
_MOST = 60_000.0
"""Half precision has minima up to a little more."""


def quantise_with_minima(weight: Floats, bits: int, block: int) -> Quantised:
    """Round float32[K, N] to code * scale + minimum, each block of a column by itself with least squared error.

    K need not be a multiple of the block. A matrix whose scales or minima do not fit half precision is rounded
    symmetrically.
    """
    k, n = weight.shape
    blocks = -(-k // block)
    codes = np.zeros((n, blocks * block), np.uint8)
    scales, minima = np.zeros((n, blocks), np.float16), np.zeros((n, blocks), np.float16)
    if np.abs(weight).max(initial=0) >= _MOST:
        return quantise(weight, bits, block)
    rows = max(1, _CHUNK // (blocks * block))
    lost = total = 0.0
    for start in range(0, n, rows):
        part = np.zeros((min(rows, n - start), blocks * block), np.float32)
        part[:, :k] = weight[:, start : start + rows].T
        values = part.reshape(-1, block)
        scale, least = _grid(values, bits)
        if not fits_half(scale):
            return quantise(weight, bits, block)
        found = _codes(values, scale, least, bits)
        error = (found * scale[:, None] + least[:, None] - values).reshape(len(part), -1)[:, :k]
        lost += float(np.vdot(error, error))
        total += float(np.vdot(part, part))
        made = found.reshape(len(part), -1)
        made[:, k:] = 0.0
        at = slice(start, start + len(part))
        codes[at] = made
        scales[at], minima[at] = scale.reshape(len(part), -1), least.reshape(len(part), -1)
    return Quantised(codes, scales, minima, bits, block, k, float(np.sqrt(lost / total)) if total else 0.0)


def _grid(values: Floats, bits: int) -> tuple[Floats, Floats]:
    """Scale and minimum of each row of float32[B, block], both as half precision has them."""
    lowest, highest = values.min(axis=1), values.max(axis=1)
    middle, half = (lowest + highest) / 2, (highest - lowest) / 2
    count, whole = np.float32(values.shape[1]), values.sum(axis=1)
    best = np.full(len(values), np.inf, np.float32)
    scale, least = np.zeros_like(best), np.zeros_like(best)
    for share in _SHARES:
        a, b = half * np.float32(2 * share / ((1 << bits) - 1)), middle - half * np.float32(share)
        for _ in range(_REFITS):
            codes = _codes(values, a, b, bits)
            code, square = codes.sum(axis=1), np.einsum("ij,ij->i", codes, codes)
            along = np.einsum("ij,ij->i", codes, values)
            spread = count * square - code * code
            usable = spread > 1e-6 * count * square
            fitted = (count * along - code * whole) / np.where(usable, spread, 1)
            a = _half(np.where(usable & (fitted > 0), fitted, a))
            b = _half((whole - a * code) / count)
        off = _codes(values, a, b, bits) * a[:, None] + b[:, None] - values
        error = np.einsum("ij,ij->i", off, off)
        better = error < best
        best[better], scale[better], least[better] = error[better], a[better], b[better]
    return scale, least


def _half(values: Floats) -> Floats:
    rounded: Floats = values.astype(np.float16).astype(np.float32)
    return rounded


def _codes(values: Floats, scale: Floats, least: Floats, bits: int) -> Floats:
    codes: Floats = np.divide(
        values - least[:, None], np.where(scale == 0, np.float32(1), scale)[:, None], dtype=np.float32
    )
    np.rint(codes, out=codes)
    np.clip(codes, 0, (1 << bits) - 1, out=codes)
    return codes
