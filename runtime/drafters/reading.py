"""How a draft model comes up to the text: what it can read of it, and what its cache holds already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.runtime.model.model import Model
from paceline.runtime.model.window import window


def as_read(model: Model, tokens: Sequence[int], vocab: int) -> Sequence[int]:
    """The text as a draft model reads it: a window where its cache is too short for all of it.

    vocab: ids of the target. Those that the draft model does not know become its last one.
    """
    last = model.part.vocab - 1
    if last + 1 < vocab and max(tokens) > last:
        tokens = [min(token, last) for token in tokens]
    return tokens if len(tokens) < model.context else window(len(tokens) + 1, model.context).of(tokens)


def read(model: Model, tokens: Sequence[int]) -> np.ndarray:
    """Bring the cache up to `tokens` and return the logits after the last one."""
    held = model.keep_common(tokens)
    if held == len(tokens):
        held -= 1
        model.rewind(held)
    return model.extend(tokens[held:])
