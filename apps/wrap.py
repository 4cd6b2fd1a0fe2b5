"""Breaks text between words, also where it arrives in pieces, without moving a cursor."""

from __future__ import annotations

from itertools import groupby

OFF = "\033[0m"
_TAB = 8


class WordWrap:
    """Turns pieces of text into what a terminal of `width` columns should be sent.

    A word that begins in the right half of a line waits until it is known to fit. One that is longer than half a line
    may be cut, and so may text between wide characters, which is written without spaces. The last column stays free:
    terminals differ in what they do there.
    """

    def __init__(self, width: int, indent: str = "") -> None:
        """indent: what lines begin with that it began itself."""
        self.resize(width)
        self._indent = indent
        self._column = 0
        self._waiting: list[tuple[str, str]] = []
        self._length = 0
        self._joined = False

    def resize(self, width: int) -> None:
        """The terminal has another width from here on."""
        self._width = max(width - 1, 20)

    def write(self, text: str, colour: str = "") -> str:
        """The characters to send for `text` in one colour, an escape sequence or nothing."""
        sent: list[tuple[str, str]] = []
        for character in text:
            sent += self._place(character, colour)
        return _paint(sent)

    def flush(self) -> str:
        """What still waits: the text has ended."""
        return _paint(self._release())

    def _place(self, character: str, colour: str) -> list[tuple[str, str]]:
        if character == "\n":
            sent, self._column = self._release(), 0
            return [*sent, ("", character)]
        if character in " \t":
            sent = self._release()
            columns = 1 if character == " " else _TAB - self._column % _TAB
            fits = self._column + columns <= self._width
            self._column += columns if fits else self._width - self._column
            # The line break that follows stands for a space at the end of a line.
            return [*sent, (colour, " " * columns)] if fits else sent
        columns = 0 if self._joined else columns_of(character)
        self._joined = character == _JOINER
        if columns == 2:  # a line may break on either side of it
            sent = self._release()
            moved = self._next_line() if self._column + 2 > self._width else []
            self._column += 2
            return [*sent, *moved, (colour, character)]
        if not self._waiting and self._column <= self._width // 2:
            self._column += columns
            return [(colour, character)]
        return self._hold(character, colour, columns)

    def _hold(self, character: str, colour: str, columns: int) -> list[tuple[str, str]]:
        """Let a word wait; once it cannot fit any more it begins a line."""
        self._waiting.append((colour, character))
        self._length += columns
        if self._column + self._length <= self._width:
            return []
        return [*self._next_line(), *self._release()]

    def _release(self) -> list[tuple[str, str]]:
        sent, self._waiting = self._waiting, []
        self._column, self._length = self._column + self._length, 0
        return sent

    def _next_line(self) -> list[tuple[str, str]]:
        self._column = len(self._indent)
        return [("", "\n" + self._indent)]


_JOINER = "\u200d"
"""Makes one picture of the emoji before and behind it."""


def columns_of(character: str) -> int:
    """0, 1 or 2."""
    if character < "\u0300":
        return 1
    from wcwidth import wcwidth

    return max(wcwidth(character), 0)


def fold(text: str, width: int, indent: str = "") -> str:
    """A whole text, broken as WordWrap breaks one that arrives in pieces."""
    wrap = WordWrap(width, indent)
    return "\n".join(line.rstrip() for line in (wrap.write(text) + wrap.flush()).split("\n"))


def _paint(pieces: list[tuple[str, str]]) -> str:
    runs = ((colour, "".join(text for _, text in run)) for colour, run in groupby(pieces, lambda p: p[0]))
    return "".join(f"{colour}{text}{OFF}" if colour else text for colour, text in runs)
