"""What heads that attend are made of: rotation, attention over a cache and a chain of one's own, one decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Rows(NamedTuple):
    """Keys and values of some rows, `[.., kv heads, head_dim]` each; keys are rotated already."""

    keys: Tensor
    values: Tensor


class Norm(nn.RMSNorm):
    """Root mean square of the last axis, in float32 wherever products are of 16-bit numbers: its weight is float32."""

    def forward(self, x: Tensor) -> Tensor:
        """x[.., width], normed."""
        return super().forward(x.float())


def rotated(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x[.., heads, D], each row turned by its position[..]: the first half of D against the second, as in Llama."""
    half = x.shape[-1] // 2
    inverse = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = (positions[..., None].float() * inverse)[..., None, :]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attend(queries: Tensor, base: Rows, last: Tensor, own: Sequence[Rows] = ()) -> Tensor:
    """Attend from `queries[R, M, heads, D]` to the rows of `base[R, L, ..]` up to `last[R, M]`, which counts too.

    own: rows `[R, M, ..]` that only the query at the same place sees, all of it. Returns `[R, M, heads * D]`.
    """
    r, m, heads, d = queries.shape
    kv, length = base.keys.shape[2], base.keys.shape[1]
    q = (queries * d**-0.5).view(r, m, kv, heads // kv, d)
    grouped = q.permute(0, 2, 3, 1, 4).reshape(r, kv, -1, d)
    scores = (grouped @ base.keys.permute(0, 2, 3, 1)).view(r, kv, heads // kv, m, length)
    hidden = torch.arange(length, device=last.device) > last[..., None]
    scores = scores.masked_fill(hidden[:, None, None], float("-inf"))
    alone = [torch.einsum("rmkgd,rmkd->rkgm", q, rows.keys)[..., None] for rows in own]
    weights = torch.cat([scores, *alone], dim=-1).softmax(-1)
    flat = weights[..., :length].reshape(r, kv, -1, length)
    out = (flat @ base.values.transpose(1, 2)).view(r, kv, heads // kv, m, d).permute(0, 3, 1, 2, 4)
    for at, rows in enumerate(own, length):
        out = out + weights[..., at].permute(0, 3, 1, 2)[..., None] * rows.values[:, :, :, None]
    return out.reshape(r, m, heads * d)


def attend_blocks(queries: Tensor, base: Rows, last: Tensor, own: Rows) -> Tensor:
    """Attend from blocks `queries[R, M, B, heads, D]` to `base[R, L, ..]` up to `last[R, M]`, and each to itself.

    own: rows of the blocks, `[R, M, B, ..]`. Returns `[R, M, B, heads * D]`.
    """
    r, m, b, heads, d = queries.shape
    kv, length = base.keys.shape[2], base.keys.shape[1]
    q = (queries * d**-0.5).unflatten(3, (kv, heads // kv))
    grouped = q.permute(0, 3, 4, 1, 2, 5).reshape(r, kv, -1, d)
    shape = (r, kv, heads // kv, m, b, length)
    scores = (grouped @ base.keys.permute(0, 2, 3, 1)).view(shape)
    hidden = torch.arange(length, device=last.device) > last[..., None]
    scores = scores.masked_fill(hidden[:, None, None, :, None], float("-inf"))
    alone = torch.einsum("rmbkgd,rmckd->rkgmbc", q, own.keys)
    weights = torch.cat([scores, alone], dim=-1).softmax(-1)
    flat = weights[..., :length].reshape(r, kv, -1, length)
    out = (flat @ base.values.transpose(1, 2)).view(*shape[:-1], d)
    out = out + torch.einsum("rkgmbc,rmckd->rkgmbd", weights[..., length:], own.values)
    return out.permute(0, 3, 4, 1, 2, 5).reshape(r, m, b, heads * d)


class Attention(nn.Module):
    """The projections of attention that reads `given` columns and adds to `hidden`."""

    def __init__(self, given: int, hidden: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q = nn.Linear(given, heads * head_dim, bias=False)
        self.k = nn.Linear(given, kv_heads * head_dim, bias=False)
        self.v = nn.Linear(given, kv_heads * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, hidden, bias=False)

    def queries(self, x: Tensor, positions: Tensor, theta: float) -> Tensor:
        """Rotated queries `[.., heads, D]` of `x[.., given]`."""
        return rotated(self.q(x).unflatten(-1, (-1, self.head_dim)), positions, theta)

    def rows(self, x: Tensor, positions: Tensor, theta: float) -> Rows:
        """What a cache keeps of `x[.., given]`."""
        keys, values = (part(x).unflatten(-1, (-1, self.head_dim)) for part in (self.k, self.v))
        return Rows(rotated(keys, positions, theta), values)


class Layer(Attention):
    """The projections of one decoder layer."""

    def __init__(self, given: int, hidden: int, heads: int, kv_heads: int, head_dim: int, inner: int) -> None:
        super().__init__(given, hidden, heads, kv_heads, head_dim)
        self.gate = nn.Linear(hidden, inner, bias=False)
        self.up = nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def mlp(self, x: Tensor) -> Tensor:
        """The gated product, `[.., hidden]`."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out
