"""Models that answer in channels (gpt-oss): what they think is told from what they say by control tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

_THOUGHTS = "analysis"


class Markers(NamedTuple):
    """Ids of `<|start|>`, `<|channel|>` and `<|message|>`: before a message stand its role and its channel."""

    start: int
    channel: int
    message: int


class Channels:
    """Follows one text token by token and knows which tokens are said to the reader.

    spell: the text of a token. prompt: what comes before; a text without markers is said from its first token on.
    """

    def __init__(self, markers: Markers, spell: Callable[[int], str | None], prompt: Sequence[int]) -> None:
        self._markers, self._spell = markers, spell
        self._said, self._header, self._channel = True, False, ""
        last = len(prompt) - 1
        while last >= 0 and prompt[last] != markers.start:
            last -= 1
        for token in prompt[max(last, 0) :]:
            self.says(token)

    def says(self, token: int) -> bool:
        """Whether this token, the next one, belongs to what is said: to no header and to no thought."""
        if token in (self._markers.start, self._markers.channel):
            self._header, self._channel = True, ""
            return False
        if token == self._markers.message:
            self._said, self._header = not self._channel.strip().startswith(_THOUGHTS), False
            return False
        if self._header:
            self._channel += self._spell(token) or ""
        return self._said and not self._header
