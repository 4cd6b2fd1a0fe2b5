"""What `paceline::TreeAttention` is: name, inputs, attributes, and a numpy reference that defines it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DOMAIN = "paceline"
VERSION = 1
NAME = "TreeAttention"
INPUTS = ("q", "k_new", "v_new", "cache_k", "cache_v", "past_len", "tree_mask", "positions")
OPTIONAL_INPUTS = ("sinks", "k_scales", "v_scales")
"""After INPUTS. The cache is float32, float16, or int8 with a scale for each head and row, float32 `[Hkv, S]`."""
OUTPUTS = ("out",)
ATTRIBUTES = ("scale", "window", "softcap")
"""`scale` float multiplies the scores; `window` int, 0 = none; `softcap` float, 0 = none."""

ROTARY_NAME = "RotaryTreeAttention"
ROTARY_INPUTS = ("qkv", "cos", "sin", "q_norm", "k_norm", *INPUTS[3:], *OPTIONAL_INPUTS)
ROTARY_OUTPUTS = ("out", "new_k", "new_v")
ROTARY_ATTRIBUTES = (*ATTRIBUTES, "q_heads", "kv_heads", "epsilon", "interleaved")
"""The projection of one layer, `qkv[1, T, (Hq + 2 Hkv) D]`, to `out[1, T, Hq D]` and its new cache rows.

q_norm[D] and k_norm[D], where there are any, normalise each head (RMS, `epsilon`) before the first R numbers of it
are rotated by cos and sin[1, T, R / 2]: halves against each other, or neighbours if `interleaved`.
New rows are rounded as the cache is before they are attended to; `new_k` and `new_v` round to the same.
"""

Floats = NDArray[np.float32]


def visible(
    past_len: int, tree_mask: NDArray[np.bool_], positions: NDArray[np.int64], window: int
) -> NDArray[np.bool_]:
    """Which of the `past_len + T` key rows each of the T query rows sees, `[T, past_len + T]`.

    The last W columns are `tree_mask[T, W]`: first the last W-T cache rows, which are not committed yet,
    then the T new rows. Earlier cache rows are committed, cache row j stands at position j, and all see it.
    With a window, a row at position p sees a committed or new row at position k only if p - k < window.
    The uncommitted cache rows are not measured, for their slot is not their position: a caller keeps the
    depth of a tree below the smallest window, so that they are always inside.
    Raises ValueError if there are fewer cache rows than W - T.
    """
    rows, width = tree_mask.shape
    waiting = width - rows
    committed = past_len - waiting
    if committed < 0:
        raise ValueError(f"tree_mask has {waiting} columns for cache rows, but past_len is {past_len}")
    seen = np.concatenate([np.ones((rows, committed), dtype=np.bool_), tree_mask], axis=1)
    if window:
        seen[:, :committed] &= positions[:, None] - np.arange(committed) < window
        seen[:, past_len:] &= positions[:, None] - positions < window
    return seen


def reference(
    q: Floats,
    k_new: Floats,
    v_new: Floats,
    cache_k: Floats,
    cache_v: Floats,
    past_len: NDArray[np.int64],
    tree_mask: NDArray[np.bool_],
    positions: NDArray[np.int64],
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Floats:
    """Attend from new rows to the cache and to each other; returns `[1, Hq, T, D]`.

    q `[1, Hq, T, D]`; k_new, v_new `[1, Hkv, T, D]`; cache_k, cache_v `[Hkv, S, D]`, of which the first
    `past_len[0]` rows count; tree_mask `[T, W]`, W >= T; positions `[T]`. Head h reads key head
    h // (Hq / Hkv). No row's result depends on another query row.
    """
    past = int(past_len[0])
    groups = q.shape[1] // k_new.shape[1]
    keys = np.repeat(np.concatenate([cache_k[:, :past], k_new[0]], axis=1), groups, axis=0)
    values = np.repeat(np.concatenate([cache_v[:, :past], v_new[0]], axis=1), groups, axis=0)
    scores = np.einsum("htd,hpd->htp", q[0].astype(np.float64), keys.astype(np.float64)) * scale
    if softcap:
        scores = np.tanh(scores / softcap) * softcap
    scores = np.where(visible(past, tree_mask, positions, window), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    out: Floats = np.einsum("htp,hpd->htd", weights, values.astype(np.float64)).astype(np.float32)
    return out[None]
