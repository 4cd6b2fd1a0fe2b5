"""Rounding a matrix so that its products change least on given inputs, not the matrix itself.

GPTQ (arXiv 2210.17323) finds the codes, coordinate descent on the same error then improves codes and scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_DAMPING = 0.01
"""Added to the diagonal of a Hessian, as a share of its mean."""
_STEPS = (6.7, 7.0, 7.25, 7.5, 7.75, 8.0, 8.3, 8.7, 9.2)
"""A block's scale maps its largest element to about minus this many steps: the best of these is the start."""
_LOWEST, _HIGHEST = -8, 7
_SWEEPS = 2
_COLUMNS = 4096


@dataclass(frozen=True, slots=True)
class Rounded:
    """A matrix [K, N] on a 4-bit grid: codes int8[K, N] from -8 to 7, scales float16[ceil(K / block), N]."""

    codes: Tensor
    scales: Tensor
    block: int

    def values(self) -> Tensor:
        """The matrix that is meant, float32[K, N]; every value is exact."""
        wide = self.scales.float().repeat_interleave(self.block, dim=0)[: len(self.codes)]
        return self.codes.float() * wide


def block_for(k: int, block: int) -> int:
    """The block that a matrix of k rows really gets: a longer one is halved, as in plain rounding."""
    while block > 32 and block // 2 >= k:
        block //= 2
    return block


def calibrated(weight: Tensor, hessian: Tensor, block: int) -> Rounded:
    """Round float32[K, N] to 4 bits so that |X (W - Q)| is small for the inputs X with X^T X = hessian[K, K].

    Only ratios within the Hessian matter. K need not be a multiple of the block. Directions that no input has
    are rounded plainly. Raises ValueError if a scale does not fit half precision.
    """
    k, n = weight.shape
    pad = -k % block
    damped = F.pad(hessian, (0, pad, 0, pad))
    mean = float(hessian.diagonal().mean())
    damped.diagonal().add_(_DAMPING * mean if mean > 0 else 1.0)
    feedback = inverse_factor(damped)
    codes = torch.empty(k + pad, n, dtype=torch.int8)
    scales = torch.empty((k + pad) // block, n, dtype=torch.float16)
    for start in range(0, n, _COLUMNS):
        part = F.pad(weight[:, start : start + _COLUMNS], (0, 0, 0, pad))
        some, wide = _error_feedback(part.clone(), feedback, block)
        for _ in range(_SWEEPS):
            _sweep(part, some, wide, damped, block)
        codes[:, start : start + _COLUMNS] = some.to(torch.int8)
        scales[:, start : start + _COLUMNS] = wide.half()
    if not torch.isfinite(scales).all():
        raise ValueError("the scales of the matrix do not fit half precision")
    return Rounded(codes[:k], scales, block)


def inverse_factor(damped: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse: row k says how a rounding error at k moves what follows."""
    upper: Tensor
    for more in (0.0, 0.1, 1.0):
        stronger = damped.clone()
        stronger.diagonal().add_(more * damped.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(stronger)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not failed:
                return upper
    raise ValueError("the inputs of the matrix are not finite")


def _error_feedback(weight: Tensor, feedback: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """GPTQ: round row after row, moving each error into the rows that are still free. Overwrites the weight."""
    codes = torch.empty_like(weight)
    scales = torch.empty(len(weight) // block, weight.shape[1])
    for start in range(0, len(weight), block):
        stop = start + block
        rows, near = weight[start:stop], feedback[start:stop, start:stop]
        scale = _best_scale(rows)
        inverse = _inverse(scale)
        errors = torch.empty_like(rows)
        for i in range(block):
            code = (rows[i] * inverse).round_().clamp_(_LOWEST, _HIGHEST)
            errors[i] = (rows[i] - code * scale) / near[i, i]
            rows[i + 1 :].addr_(near[i, i + 1 :], errors[i], alpha=-1)
            codes[start + i] = code
        weight[stop:].addmm_(feedback[start:stop, stop:].T, errors, alpha=-1)
        scales[start // block] = scale
    return codes, scales


def _sweep(weight: Tensor, codes: Tensor, scales: Tensor, hessian: Tensor, block: int) -> None:
    """Improve scales, then codes, block after block, each given all the others. Overwrites both."""
    meant = codes * scales.repeat_interleave(block, dim=0)
    pull = hessian @ (weight - meant)
    for b, start in enumerate(range(0, len(weight), block)):
        stop = start + block
        own, code, force = hessian[start:stop, start:stop], codes[start:stop], pull[start:stop]
        before = code * scales[b]
        along = (own @ code).mul_(code).sum(0)
        better = scales[b] + (force * code).sum(0) / torch.where(along > 0, along, 1)
        scales[b] = torch.where(along > 0, better, scales[b]).half().float()
        force = force - own @ (code * scales[b] - before)
        inverse = _inverse(scales[b])
        for i in range(block):
            best = (code[i] + force[i] / own[i, i] * inverse).round_().clamp_(_LOWEST, _HIGHEST)
            force.addr_(own[i], (best - code[i]) * scales[b], alpha=-1)
            code[i] = best
        pull.addmm_(hessian[:, start:stop], code * scales[b] - before, alpha=-1)


def _best_scale(rows: Tensor) -> Tensor:
    """The half-precision scale of least squared error for each column of float32[block, N]."""
    top = rows.gather(0, rows.abs().argmax(0, keepdim=True))[0]
    per_top = _inverse(top)
    best = torch.full_like(top, -1)
    scale = torch.zeros_like(top)
    for steps in _STEPS:
        codes = (rows * (-steps * per_top)).round_().clamp_(_LOWEST, _HIGHEST)
        along, square = (rows * codes).sum(0), (codes * codes).sum(0).clamp_min_(1)
        gain = along * along / square
        scale = torch.where(gain > best, along / square, scale)
        best = torch.maximum(gain, best)
    return scale.half().float()


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0, 1 / torch.where(scale == 0, 1, scale))
