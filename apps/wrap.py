"""Breaks streamed text between words, although a word may arrive in pieces."""

from __future__ import annotations

from itertools import groupby
from unicodedata import combining, east_asian_width

OFF = "\033[0m"


class WordWrap:
    """Turns pieces of text into what a terminal of `width` columns should be sent.

    A word that turns out not to fit is taken back from the end of its line and written on the next one.
    The last column stays free: a cursor that stands behind it cannot be moved back reliably.
    """

    def __init__(self, width: int) -> None:
        self._width = max(width - 1, 20)
        self._column = 0
        self._word: list[tuple[str, str]] = []

    def write(self, text: str, colour: str = "") -> str:
        """The characters to send for `text` in one colour, an escape sequence or nothing."""
        sent: list[tuple[str, str]] = []
        for character in text:
            sent += self._place(character, colour)
        return _paint(sent)

    def _place(self, character: str, colour: str) -> list[tuple[str, str]]:
        if character == "\n":
            self._column = 0
            self._word.clear()
            return [("", character)]
        columns = _columns(character)
        fits = self._column + columns <= self._width
        if character == " ":
            self._word.clear()
            self._column += fits
            return [(colour, character)] if fits else []  # the line break that follows stands for it
        moved = [] if fits else self._next_line()
        self._word.append((colour, character))
        self._column += columns
        return [*moved, (colour, character)]

    def _next_line(self) -> list[tuple[str, str]]:
        """Take the unfinished word along; one as long as a line is cut instead."""
        length = sum(_columns(c) for _, c in self._word)
        if length >= self._width:
            self._word.clear()
            length = 0
        self._column = length
        back = f"\033[{length}D\033[K" if length else ""
        return [("", back + "\n"), *self._word]


def _columns(character: str) -> int:
    if combining(character):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def _paint(pieces: list[tuple[str, str]]) -> str:
    runs = ((colour, "".join(text for _, text in run)) for colour, run in groupby(pieces, lambda p: p[0]))
    return "".join(f"{colour}{text}{OFF}" if colour else text for colour, text in runs)
