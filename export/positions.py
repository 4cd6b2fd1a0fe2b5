"""Positions: the longest text of a configuration, and by what frequencies a GGUF file's positions turn; no torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from paceline.export.errors import ExportError
from paceline.export.gguf.reader import Floats, Gguf
from paceline.export.gguf.scaling import FACTORS, factors

PLAIN_ROPE = ("default", "linear")
"""Kinds of rotation whose frequencies are those of one formula, at every length."""


LONGEST = 2**24
"""Tokens of a context at most: more than any model has. Masks of so many are made."""


def longest_text(config: Any) -> int:
    """Tokens of the longest text: the configuration's own limit, times a factor that stretches positions beyond it.

    yarn names the length that its factor counts from. longrope, llama3, and scalings of some layers only change
    nothing: there the limit is the stretched one already. Raises ExportError where there is none, or beyond LONGEST.
    """
    longest = _limit(config)
    if longest > LONGEST:
        raise ExportError(f"config.json: a context has {longest} tokens, and at most {LONGEST} are carried")
    return longest


def _limit(config: Any) -> int:
    longest = getattr(config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        raise ExportError(f"the configuration of {config.model_type} does not say how long a context may be")
    scaling = getattr(config, "rope_parameters", None) or {}
    kind, factor = scaling.get("rope_type"), scaling.get("factor")
    if kind not in ("yarn", "linear", "dynamic") or not isinstance(factor, int | float):
        return longest
    trained = scaling.get("original_max_position_embeddings", longest) if kind == "yarn" else longest
    return max(longest, int(trained * factor))


def plain_frequencies(rope: dict[str, Any], half: int) -> Floats:
    """Frequencies of a rotation of PLAIN_ROPE over 2 * half columns, float32[half].

    Powers are computed in double precision and rounded once, so that they are the same on every machine: torch's differ
    by one unit in the last place here and there (52 of 6,432 in twelve bases and ten widths).
    """
    exponents = np.arange(0, 2 * half, 2).astype(np.float32) / np.float32(2 * half)
    powers = np.power(np.float64(rope["rope_theta"]), exponents.astype(np.float64)).astype(np.float32)
    found: Floats = np.float32(1) / powers / np.float32(rope.get("factor", 1.0))
    return found


def divided(file: Gguf, frequencies: Floats) -> Floats:
    """The same, divided by the factors that a file has for them, if it has any. Raises ExportError."""
    if FACTORS not in file.tensors:
        return frequencies
    divisor = factors(file, FACTORS)
    if divisor.shape != frequencies.shape:
        raise ExportError(f"{file.path}: {FACTORS} has not one factor for each frequency")
    return frequencies / divisor
