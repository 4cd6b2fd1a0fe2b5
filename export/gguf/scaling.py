"""Rotary positions of a GGUF file: base, and how they are scaled for long texts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from paceline.export.errors import ExportError
from paceline.export.gguf.keys import Keys
from paceline.export.gguf.reader import Floats, Gguf

FACTORS = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_MOST_FACTORS = 4096


def plain_rope(keys: Keys, base: float = 10000.0) -> dict[str, Any]:
    """One rotation for all lengths: as it is, or scaled as linear or yarn have it. Raises ExportError."""
    theta = keys.number("rope.freq_base", base)
    kind = keys.value("rope.scaling.type") or "none"
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    original = keys.value("rope.scaling.original_context_length")
    if keys.value("rope.scaling.attn_factor") not in (None, 0, 1):
        raise keys.wrong("rope.scaling.attn_factor", "is not carried")
    if kind == "none" or (factor == 1 and kind == "linear"):
        return {"rope_type": "default", "rope_theta": theta}
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if kind != "yarn" or not isinstance(original, int) or original < 1:
        raise keys.wrong("rope.scaling.type", f"is {str(kind)[:40]!r} in a way that is not carried")
    found = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": original,
    }
    for theirs, ours in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if (value := keys.optional(f"rope.scaling.{theirs}")) is not None:
            found[ours] = value
    return found


def long_rope(keys: Keys, context: int) -> dict[str, Any]:
    """Frequencies divided by one list of factors in short texts and by another in long ones. Raises ExportError."""
    if not keys.has(LONG) and not keys.has(SHORT):
        return plain_rope(keys)
    original = keys.whole("rope.scaling.original_context_length")
    scale = keys.number("rope.scaling.attn_factor", _long_scale(context, original))
    if keys.value("rope.scaling.type") not in (None, "longrope"):
        raise keys.wrong("rope.scaling.type", f"is not longrope, and there is {LONG}")
    return {
        "rope_type": "longrope",
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "short_factor": factors(keys.file, SHORT).tolist(),
        "long_factor": factors(keys.file, LONG).tolist(),
        "original_max_position_embeddings": original,
        "attention_factor": scale,
    }


def factors(file: Gguf, name: str) -> Floats:
    """A tensor of factors, float32[frequencies]. Raises ExportError."""
    stored = file.tensors.get(name)
    if stored is None or len(stored.shape) != 1 or stored.shape[0] > _MOST_FACTORS:
        raise ExportError(f"{file.path}: {name} is absent, or no list of factors: fetch the file again")
    found = stored.values().reshape(-1)
    if not (np.isfinite(found) & (found > 0)).all():
        raise ExportError(f"{file.path}: {name} holds factors that are not above 0: fetch the file again")
    return found


def _long_scale(context: int, original: int) -> float:
    """What Phi-3 multiplies its tables by where the file does not say it."""
    if context <= original or original < 2:
        return 1.0
    return math.sqrt(1 + math.log(context / original) / math.log(original))
