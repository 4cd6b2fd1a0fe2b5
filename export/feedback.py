"""Rounding to blocks with or without minima for given inputs: plainly by importance, or with error feedback."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from paceline.export.quantize import Floats, Quantised, fits_half, quantise
from paceline.export.rounding import inverse_factor
from paceline.runtime.ops.packed_matmul import zero_point

_SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Shares of a block's range that a scale and a minimum are tried for; the least weighted error wins."""
_FINE = (1.0, 0.97)
_STEPS = (0.84, 0.88, 0.91, 0.94, 0.97, 1.0, 1.04, 1.09, 1.15)
"""Without a minimum: the largest element is mapped to minus the zero point times one of these."""
_FINE_STEPS = (0.97, 0.99, 1.0)
_FLOOR = 0.05
"""Importance that an input has at least, of the mean: what the text never showed may still come."""
_COLUMNS = 4096
_MOST = 60_000.0
"""Half precision has minima up to a little more."""


@dataclass(frozen=True, slots=True)
class Format:
    """Codes of `bits` in blocks of `block`, symmetric or with a minimum; scales and minima are float16."""

    bits: int
    block: int
    minimum: bool

    def size(self, k: int, n: int) -> int:
        """Bits that a matrix [k, n] takes, k padded to whole blocks."""
        return n * -(-k // self.block) * (self.block * self.bits + 16 * (1 + self.minimum))


def round_matrix(weight: Floats, form: Format, inputs: Tensor | None) -> Quantised:
    """Round float32[K, N] so that products with its inputs change little.

    inputs: their second moments, of each alone [K] or of all pairs [K, K]; with pairs the error of a row is moved
    into the rows behind it (GPTQ, arXiv 2210.17323). None counts all inputs alike. A matrix whose scales do not fit
    half precision is rounded plainly and symmetrically.
    """
    k, n = weight.shape
    if inputs is None:
        inputs = torch.ones(k)
    pad = -k % form.block
    pairs = inputs.ndim == 2
    raw = F.pad(inputs, (0, pad, 0, pad) if pairs else (0, pad)).clone()
    importance = raw.diagonal() if pairs else raw
    importance += _FLOOR * _usual(importance[:k])
    factor = inverse_factor(raw) if pairs else None
    codes = np.empty((n, k + pad), np.uint8)
    blocks = (k + pad) // form.block
    scales, minima = np.empty((n, blocks), np.float32), np.empty((n, blocks), np.float32)
    lost = total = 0.0
    fits = bool(np.abs(weight).max(initial=0) < _MOST)
    for start in range(0, n if fits else 0, _COLUMNS):
        stop = min(n, start + _COLUMNS)
        part = torch.from_numpy(np.ascontiguousarray(weight[:, start:stop]))
        part = F.pad(part, (0, 0, 0, pad))
        code, scale, least = (
            _plain(part, form, importance) if factor is None else _fed_back(part, form, importance, factor)
        )
        meant = _spread(scale, form) * code + _spread(least, form)
        lost += float((meant - part)[:k].square().sum())
        total += float(part.square().sum())
        code[k:] = 0.0  # what stands for 0 in the padding: the zero point is added below
        ranges = part.reshape(-1, form.block, stop - start)
        fits &= not ((scale == 0) & (ranges.amax(1) != ranges.amin(1))).any()
        codes[start:stop] = (code if form.minimum else code + zero_point(form.bits)).T.numpy()
        scales[start:stop], minima[start:stop] = scale.T.numpy(), least.T.numpy()
    if not (fits and fits_half(scales)):
        return quantise(weight, form.bits, form.block)
    kept = minima.astype(np.float16) if form.minimum else None
    error = (lost / total) ** 0.5 if total else 0.0
    return Quantised(codes, scales.astype(np.float16), kept, form.bits, form.block, k, error)


def weighted_rounding(weight: Tensor, form: Format, importance: Tensor) -> Tensor:
    """float32[K, N] after rounding each block alone, with the least squared error weighted by importance[K]."""
    k, pad = len(weight), -len(weight) % form.block
    floored = F.pad(importance + _FLOOR * _usual(importance), (0, pad))
    code, scale, least = _plain(F.pad(weight, (0, 0, 0, pad)), form, floored)
    return (_spread(scale, form) * code + _spread(least, form))[:k]


def _usual(importance: Tensor) -> Tensor:
    """The mean, or 1 where no input was ever anything."""
    usual = importance.mean()
    return usual if usual > 0 else torch.ones(())


def _spread(per_block: Tensor, form: Format) -> Tensor:
    return per_block.repeat_interleave(form.block, dim=0)


def _plain(weight: Tensor, form: Format, importance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [K, N], scales and minima [K / block, N] of blocks rounded alone."""
    blocks = weight.reshape(-1, form.block, weight.shape[1])
    scale, least = _grid(blocks, form, importance.reshape(-1, form.block, 1))
    return _codes(blocks, form, scale[:, None], least[:, None]).reshape(weight.shape), scale, least


def _fed_back(
    weight: Tensor, form: Format, importance: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, row after row, each error moved into the rows that are still free."""
    free, codes, block = weight.clone(), torch.empty_like(weight), form.block
    scales = torch.empty(len(weight) // block, weight.shape[1])
    minima = torch.empty_like(scales)
    for at, start in enumerate(range(0, len(weight), block)):
        stop = start + block
        rows, near = free[start:stop], factor[start:stop, start:stop]
        scale, least = _grid(rows[None], form, importance[start:stop].reshape(1, -1, 1))
        errors = torch.empty_like(rows)
        for i in range(block):
            code = _codes(rows[i], form, scale[0], least[0])
            errors[i] = (rows[i] - code * scale[0] - least[0]) / near[i, i]
            rows[i + 1 :].addr_(near[i, i + 1 :], errors[i], alpha=-1)
            codes[start + i] = code
        free[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
        scales[at], minima[at] = scale[0], least[0]
    return codes, scales, minima


def _codes(values: Tensor, form: Format, scale: Tensor, least: Tensor) -> Tensor:
    top = 1 << form.bits
    low = 0 if form.minimum else -(top // 2)
    codes = (values - least) / torch.where(scale == 0, 1, scale)
    return codes.round_().clamp_(low, low + top - 1)


def _grid(blocks: Tensor, form: Format, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum [B, N] of float32[B, block, N] with the least weighted error; minima are 0 without."""
    fine = form.bits >= 6
    if form.minimum:
        tries = _with_minimum(blocks, form, importance, _FINE if fine else _SHRUNK)
    else:
        tries = _symmetric(blocks, form, importance, _FINE_STEPS if fine else _STEPS)
    best = torch.full_like(blocks[:, 0], torch.inf)
    scale, least = torch.zeros_like(best), torch.zeros_like(best)
    for a, b in tries:
        off = blocks - b[:, None] - a[:, None] * _codes(blocks, form, a[:, None], b[:, None])
        error = (importance * off.square_()).sum(1)
        better = error < best
        best = torch.where(better, error, best)
        scale, least = torch.where(better, a, scale), torch.where(better, b, least)
    return scale, least


def _symmetric(
    blocks: Tensor, form: Format, importance: Tensor, steps: tuple[float, ...]
) -> list[tuple[Tensor, Tensor]]:
    top = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))[:, 0]
    none = torch.zeros_like(top)
    tries = []
    for step in steps:
        codes = _codes(blocks, form, (-top / (step * zero_point(form.bits)))[:, None], none[:, None])
        square = (importance * codes.square()).sum(1)
        scale = (importance * blocks * codes).sum(1) / torch.where(square > 0, square, 1)
        tries.append((scale.half().float(), none))
    return tries


def _with_minimum(
    blocks: Tensor, form: Format, importance: Tensor, shares: tuple[float, ...]
) -> list[tuple[Tensor, Tensor]]:
    lowest, highest = blocks.amin(1), blocks.amax(1)
    middle, half = (lowest + highest) / 2, (highest - lowest) / 2
    weight = importance.sum(1)
    value = (importance * blocks).sum(1)
    tries = []
    for share in shares:
        scale, least = half * (2 * share / ((1 << form.bits) - 1)), middle - half * share
        for _ in range(2):
            codes = _codes(blocks, form, scale[:, None], least[:, None])
            weighted = importance * codes
            code, square, along = weighted.sum(1), (weighted * codes).sum(1), (weighted * blocks).sum(1)
            spread = weight * square - code * code
            usable = spread > 1e-6 * weight * square
            fitted = (weight * along - code * value) / torch.where(usable, spread, 1)
            scale = torch.where(usable & (fitted > 0), fitted, scale)
            scale = scale.half().float()
            least = ((value - scale * code) / weight).half().float()
        tries.append((scale, least))
    return tries
