"""Rotary frequencies that depend on the context limit: dynamic NTK scaling, and LongRoPE (2402.13753)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paceline.runtime.manifest import Rope


def frequencies(rope: Rope, context: int) -> tuple[NDArray[np.float32], float]:
    """Return the graph inputs `inv_freq[dim / 2]` and `rope_scale` (as a number) for a context limit.

    They hold for the whole session, so that a token's key never depends on what comes after it.
    """
    if context < 1:
        raise ValueError(f"a context of {context} tokens is too short: use at least 1")
    if rope.kind == "longrope":
        longer = context > rope.original_context
        values = rope.long if longer else rope.short
        scale = rope.long_scale if longer else rope.short_scale
        return np.asarray(values, np.float32), scale
    length = max(context, rope.original_context)
    stretch = rope.factor * length / rope.original_context - (rope.factor - 1)
    base = rope.base * stretch ** (rope.dim / (rope.dim - 2))
    exponents = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
    inverse = np.float32(1) / np.power(np.float32(base), exponents)
    return inverse.astype(np.float32), 1.0
