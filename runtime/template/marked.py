"""Text that remembers, character by character, whether the template wrote it, the model said it earlier or it came
from outside.

Only control tokens that the template wrote in full may become control ids, so every operation a template
can do on text keeps the marks; one that cannot returns text marked as foreign, which is the safe side.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

FOREIGN, OWN, SAID = 0, 1, 2
"""Marks: from outside, written by the template, said by the model in an earlier answer."""

_RUNS = re.compile(rb"\x00+|\x01+|\x02+")


@dataclass(frozen=True, slots=True, eq=False)
class Marked:
    """`text` and, for each of its characters, one byte in `own`: OWN, SAID or FOREIGN."""

    text: str
    own: bytes
    safe: bool = False
    """Whether it is markup: plain text that is added to it is escaped."""

    def __post_init__(self) -> None:
        if len(self.text) != len(self.own):
            raise ValueError(f"{len(self.text)} characters cannot have {len(self.own)} marks")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Marked) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __len__(self) -> int:
        return len(self.text)

    def __add__(self, other: Marked) -> Marked:
        return Marked(self.text + other.text, self.own + other.own)

    def __mul__(self, times: int) -> Marked:
        return Marked(self.text * times, self.own * times, self.safe)

    def __getitem__(self, where: slice) -> Marked:
        return Marked(self.text[where], self.own[where], self.safe)

    def __iter__(self) -> Iterator[Marked]:
        text, own = self.text, self.own
        return (Marked(text[i], own[i : i + 1]) for i in range(len(text)))

    def runs(self) -> Iterator[tuple[str, int]]:
        """The longest stretches with one author, in order: (text, mark)."""
        for run in _RUNS.finditer(self.own):
            yield self.text[run.start() : run.end()], self.own[run.start()]

    def strip(self, characters: str | None = None, *, left: bool = True, right: bool = True) -> Marked:
        """Without `characters` (white space where None) at the chosen ends."""
        start = len(self) - len(self.text.lstrip(characters)) if left else 0
        rest = self[start:]
        return rest[: len(rest.text.rstrip(characters))] if right else rest

    def replace(self, old: str, new: Marked, count: int = -1) -> Marked:
        """Like `str.replace`; what is put in keeps the marks of `new`."""
        pieces, start, end = list[Marked](), 0, 0
        while count and (at := self.text.find(old, start)) >= 0:
            pieces += [self[end:at], new]
            end = at + len(old)
            # An empty text is found once before each character and once at the end.
            start, count = end + (not old), count - 1
        return join([*pieces, self[end:]])

    def split(self, separator: str | None, limit: int = -1, *, from_right: bool = False) -> list[Marked]:
        """Like `str.split` and `str.rsplit`."""
        cut = self.text.rsplit if from_right else self.text.split
        parts, pieces, at = cut(separator, limit), [], 0
        # Looking each part up from the left is exact: only separators stand between two parts.
        for number, part in enumerate(parts):
            if separator is None:
                at = self.text.index(part, at)
            elif number:
                at += len(separator)
            pieces.append(self[at : at + len(part)])
            at += len(part)
        return pieces

    def mapped(self, change: Callable[[str], str]) -> Marked:
        """`change` of the text; marks survive a change that keeps the length, else the result is foreign."""
        text = change(self.text)
        return Marked(text, self.own if len(text) == len(self) else bytes(len(text)), self.safe)

    def markup(self) -> Marked:
        """The same text as markup."""
        return Marked(self.text, self.own, True)

    def escaped(self) -> Marked:
        """As markup, with entities for what HTML would read; an entity has the mark of what it stands for."""
        if self.safe:
            return self
        pieces = [
            (html.escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;"), mark)
            for text, mark in self.runs()
        ]
        own = b"".join([bytes((mark,)) * len(text) for text, mark in pieces])
        return Marked("".join([text for text, _ in pieces]), own, True)


EMPTY = Marked("", b"")


def written(text: str) -> Marked:
    """Text of the template itself."""
    return Marked(text, b"\x01" * len(text))


def foreign(text: str) -> Marked:
    """Text from outside: messages, numbers, JSON."""
    return Marked(text, bytes(len(text)))


def said(text: str) -> Marked:
    """Text of the model's earlier answers."""
    return Marked(text, b"\x02" * len(text))


def join(pieces: Iterable[Marked], separator: Marked = EMPTY) -> Marked:
    """The pieces with `separator` between them."""
    parts = list(pieces)
    return Marked(
        separator.text.join([part.text for part in parts]), separator.own.join([part.own for part in parts])
    )
