"""Rotary frequencies that depend on the length of the text: dynamic NTK scaling, and LongRoPE (2402.13753).

A text grows through steps. Within one every token has the same frequencies, so that its keys stay valid; at the next
the whole text is read again, with those of the new step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paceline.runtime.manifest import Rope


def step_of(rope: Rope, length: int) -> int:
    """The step of a text of `length` tokens: 0 up to the original context.

    longrope has one more, dynamic one for each doubling.
    """
    if length <= rope.original_context:
        return 0
    return 1 if rope.kind == "longrope" else ((length - 1) // rope.original_context).bit_length()


def reach(rope: Rope, step: int, longest: int) -> int:
    """The length of the longest text of a step, for a model whose texts have `longest` tokens at most."""
    if step and rope.kind == "longrope":
        return longest
    return min(rope.original_context << step, longest)


def frequencies(rope: Rope, length: int) -> tuple[NDArray[np.float32], float]:
    """Return the graph inputs `inv_freq[dim / 2]` and `rope_scale` (as a number) for a text of `length` tokens."""
    if length < 1:
        raise ValueError(f"a text of {length} tokens is too short: use at least 1")
    if rope.kind == "longrope":
        longer = length > rope.original_context
        values = rope.long if longer else rope.short
        scale = rope.long_scale if longer else rope.short_scale
        return np.asarray(values, np.float32), scale
    length = max(length, rope.original_context)
    stretch = rope.factor * length / rope.original_context - (rope.factor - 1)
    base = rope.base * stretch ** (rope.dim / (rope.dim - 2))
    exponents = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
    inverse = np.float32(1) / np.power(np.float32(base), exponents)
    return inverse.astype(np.float32), 1.0
