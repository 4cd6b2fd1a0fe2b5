"""Perplexity of a model on a text: how many tokens it hesitates between, on average."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


def perplexity(logits_of: Callable[[Sequence[int]], Logits], ids: Sequence[int], context: int) -> float:
    """Exponential of the mean negative log-likelihood, in nats, of every token but the first of each window.

    The ids are cut into windows of `context` tokens (the last may be shorter). `logits_of(window)` runs one
    window from an empty cache and returns float32[len(window), V]. Raises ValueError below two tokens.
    """
    if context < 2 or len(ids) < 2:
        raise ValueError("perplexity needs a context and a text of at least two tokens")
    loss, count = 0.0, 0
    for at in range(0, len(ids), context):
        window = list(ids[at : at + context])
        if len(window) < 2:
            continue
        loss += negative_log_likelihood(logits_of(window)[:-1], window[1:])
        count += len(window) - 1
    return float(np.exp(loss / count))


def negative_log_likelihood(logits: Logits, targets: Sequence[int]) -> float:
    """Sum over rows of -log softmax(logits)[target], in nats; one row is widened to float64 at a time."""
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        top = float(row.max())
        shifted = np.exp(row.astype(np.float64) - top)
        total += float(np.log(shifted.sum())) + top - float(row[target])
    return total
