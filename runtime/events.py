"""What a caller sees of a generation, token by token."""

from __future__ import annotations

from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "cancelled"]


class Event(NamedTuple):
    """One token and the text that it completed (often, not always, its own).

    source: the drafter that proposed it, None for a token of the target's own. The last event has a
    finish_reason and no token: "stop" (end of sequence or a stop string), "length" (max tokens or context) or
    "cancelled".
    logprob, top_logprobs: where asked for, natural logarithms of the token's probability and of the likeliest ids',
    (id, logprob) from the likeliest on, as the model gives them: before penalties, temperature and truncation.
    """

    text: str
    token: int | None = None
    source: str | None = None
    finish_reason: FinishReason | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
