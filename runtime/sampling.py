"""How a row of logits becomes the law that the next token is drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sampling:
    """The user's choices; the defaults decode greedily.

    Applied in this order, to every position with its own (hypothetical) history: logit bias and banned
    tokens, repetition penalty (over prompt and output, as transformers does), frequency and presence penalty
    (over the output, as OpenAI does), temperature, top-k, top-p, min-p. 0 switches top-k and min-p off.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned: frozenset[int] = frozenset()
