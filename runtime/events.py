"""What a caller sees of a generation, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Event:
    """One token and the text that it completed (often, not always, its own).

    source: the drafter that proposed it, None for a token of the target's own. The last event has a
    finish_reason and no token: "stop" (end of sequence or a stop string), "length" (max tokens or context).
    """

    text: str
    token: int | None = None
    source: str | None = None
    finish_reason: FinishReason | None = None
