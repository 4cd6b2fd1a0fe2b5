"""Answers that go round in circles: how they are told, and what helps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.runtime.request import Sampling

_LONGEST, _TIMES, _FEWEST = 64, 4, 48
"""Tokens of what is said over and over, how often, and tokens of all that: a refrain of a song is less."""


def repeats(tokens: Sequence[int]) -> bool:
    """Whether a text ends in the same few tokens over and over."""
    for period in range(1, min(_LONGEST, len(tokens) // _TIMES) + 1):
        span = max(_TIMES * period, _FEWEST)
        if span <= len(tokens) and tokens[-span:-period] == tokens[-(span - period) :]:
            return True
    return False


def repeat_words(sampling: Sampling, setting: str) -> str:
    """What to do about it. setting: what stands before the name of a choice, as `--`."""
    ways = [] if sampling.temperature else [f"{setting}temp 0.8"]
    more = 1.1 if sampling.repetition_penalty == 1 else round(sampling.repetition_penalty + 0.1, 2)
    ways.append(f"{setting}repeat-penalty {more:g}")
    return f"the answer repeats itself: {' or '.join(ways)} works against that"
