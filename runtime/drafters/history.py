"""Keeping an index of the text in step with the committed tokens, also when they were taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from paceline.runtime.contracts import common_prefix


class Index(Protocol):
    """Something built from tokens one by one that can also give the last one back."""

    @property
    def tokens(self) -> list[int]:
        """What was taken in; not to be changed by anyone else."""

    def push(self, token: int) -> None:
        """Take in one more token."""

    def pop(self) -> None:
        """Undo the last push."""

    def clear(self) -> None:
        """Undo every push."""


def follow(index: Index, tokens: Sequence[int], capacity: int) -> None:
    """Make the index hold the end of `tokens`: all of it, or between half the capacity and the capacity.

    Where the window starts is a function of `len(tokens)` alone, so the index never depends on the way that
    led to `tokens`. Amortised O(1) pushes a token; comparing costs a few nanoseconds a token.
    """
    half = max(capacity // 2, 1)
    start = max(-(-(len(tokens) - capacity) // half) * half, 0)
    held = index.tokens
    if held == tokens[start : start + len(held)]:
        for token in tokens[start + len(held) :]:
            index.push(token)
        return
    window = list(tokens[start:])
    keep = common_prefix(held, window)
    if keep < len(held) // 2:
        index.clear()
        keep = 0
    while len(index.tokens) > keep:
        index.pop()
    for token in window[keep:]:
        index.push(token)
