"""Stop strings over streamed text: what may be shown now, and where the answer ends."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence

from paceline.memory.errors import ArgumentError


class StopStrings:
    """Finds stop strings that may span pieces; text that may yet become one is held back.

    The stop string that is complete first wins, and of those complete at the same character the longest, so
    the result never depends on how the text was cut into pieces. Work per character is constant for each
    stop string (Knuth, Morris and Pratt). Raises ValueError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str | bytes) or not isinstance(stops, Collection):
            kind = "one string" if isinstance(stops, str) else f"{stops!r:.40}"
            raise ArgumentError(f"stop strings must be a list of strings, not {kind}")
        if wrong := [stop for stop in stops if not isinstance(stop, str)]:
            raise ArgumentError(f"a stop string must be text, not {wrong[0]!r:.40}")
        if any(not stop for stop in stops):
            raise ArgumentError("a stop string must not be empty")
        self._stops = [(stop, _failures(stop)) for stop in dict.fromkeys(stops)]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self._shown = 0
        self._ends: list[int] = []
        self._hit = False

    def push(self, piece: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string was met); call once for each token, also with ''.

        Nothing of the stop string or after it is ever returned. Raises ValueError after a stop.
        """
        if self._hit:
            raise ArgumentError("the answer has already met a stop string")
        if not self._stops:
            return piece, False
        self._ends.append(self._shown + len(self._held) + len(piece))
        text, start = self._held + piece, len(self._held)
        for index in range(start, len(text)):
            if longest := self._advance(text[index]):
                self._hit, self._held = True, ""
                return self._show(text[: index + 1 - longest]), True
        keep = len(text) - max(self._matched)
        self._held = text[keep:]
        return self._show(text[:keep]), False

    def flush(self) -> str:
        """The text held back, for an answer that ended without a stop string."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return self._show(held)

    @property
    def hit(self) -> bool:
        """Whether a stop string was met."""
        return self._hit

    @property
    def kept(self) -> int:
        """After a stop: how many of the pushed tokens belong to the answer.

        These are the fewest first tokens whose text covers everything shown. A token that is all stop text,
        or comes after it, is not among them; one that ends with the beginning of the stop string is.
        """
        if not self._hit:
            raise ArgumentError("no stop string was met")
        return bisect_left(self._ends, self._shown) + 1 if self._shown else 0

    def _show(self, text: str) -> str:
        self._shown += len(text)
        return text

    def _advance(self, character: str) -> int:
        """Move every stop string by one character; the length of the longest that is complete now, or 0."""
        complete = 0
        for which, (stop, failures) in enumerate(self._stops):
            matched = self._matched[which]
            while matched and stop[matched] != character:
                matched = failures[matched - 1]
            matched += stop[matched] == character
            if matched == len(stop):
                complete = max(complete, matched)
            self._matched[which] = matched
        return complete


def _failures(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    table, length = [0] * len(stop), 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = table[length - 1]
        length += stop[index] == stop[length]
        table[index] = length
    return table
