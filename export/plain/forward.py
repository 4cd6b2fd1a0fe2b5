"""A decoder in numpy, in float32: what its graph is compared with where torch is not installed.

It is written from the family's definition and shares nothing with the graph but the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from paceline.export.passes import Floats
from paceline.export.plain.decoder import Decoder


def logits_of(decoder: Decoder, weights: Mapping[str, Floats], tokens: Sequence[int]) -> Floats:
    """Logits for every position of one sequence, float32[T, V]; weights by transformers' names."""
    d, count = decoder, len(tokens)
    table = weights["model.embed_tokens.weight"]
    x = table[list(tokens)]
    angles = np.arange(count, dtype=np.float32)[:, None] * d.frequencies
    turn = np.cos(angles), np.sin(angles)
    ago = np.arange(count)[:, None] - np.arange(count)
    seen = (ago >= 0) & (ago < (d.window or count))
    for number in range(d.layers):
        at = f"model.layers.{number}"
        normed = rms_norm(x, weights[f"{at}.input_layernorm.weight"], d.epsilon)
        x = x + _attention(d, weights, f"{at}.self_attn", normed, turn, seen)
        normed = rms_norm(x, weights[f"{at}.post_attention_layernorm.weight"], d.epsilon)
        gate = normed @ weights[f"{at}.mlp.gate_proj.weight"].T
        with np.errstate(over="ignore"):
            gate = gate / (1 + np.exp(-gate))
        inner = gate * (normed @ weights[f"{at}.mlp.up_proj.weight"].T)
        x = x + inner @ weights[f"{at}.mlp.down_proj.weight"].T
    x = rms_norm(x, weights["model.norm.weight"], d.epsilon)
    found: Floats = x @ weights.get("lm_head.weight", table).T
    return found


def _attention(
    d: Decoder,
    weights: Mapping[str, Floats],
    at: str,
    x: Floats,
    turn: tuple[Floats, Floats],
    seen: npt.NDArray[np.bool_],
) -> Floats:
    """Heads of [T, hidden] in groups that share keys and values."""

    def heads(part: str, count: int) -> Floats:
        y = x @ weights[f"{at}.{part}_proj.weight"].T
        if d.biased:
            y = y + weights[f"{at}.{part}_proj.bias"]
        y = y.reshape(len(x), count, d.head_dim)
        if d.normed_heads and part != "v":
            y = rms_norm(y, weights[f"{at}.{part}_norm.weight"], d.epsilon)
        turned: Floats = y.transpose(1, 0, 2)
        return turned

    query, key, value = heads("q", d.heads), heads("k", d.kv_heads), heads("v", d.kv_heads)
    query, key = rotated(query, *turn), rotated(key, *turn)
    query = query.reshape(d.kv_heads, -1, len(x), d.head_dim)
    scores = query @ key.transpose(0, 2, 1)[:, None] * np.float32(d.head_dim**-0.5)
    scores = np.where(seen, scores, np.float32(-np.inf))
    weight = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weight /= weight.sum(axis=-1, keepdims=True)
    found = (weight @ value[:, None]).reshape(d.heads, len(x), d.head_dim).transpose(1, 0, 2)
    result: Floats = found.reshape(len(x), -1) @ weights[f"{at}.o_proj.weight"].T
    return result


def rms_norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """Rows scaled to a mean square of 1, then by a weight for each column."""
    size = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    return np.asarray(x / np.sqrt(size + np.float32(epsilon)) * weight, np.float32)


def rotated(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Pairs of one number from each half, turned."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
