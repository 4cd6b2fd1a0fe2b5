"""What the terminal can show, and text streamed to stdout so that it suits a terminal, a pipe or a file."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from paceline.printable import printable
from paceline.wrap import OFF, WordWrap, fold

if TYPE_CHECKING:
    from rich.console import Console

DIM = "\033[2m"


def is_dumb() -> bool:
    """Whether the terminal obeys no escape sequences (`TERM=dumb`)."""
    return os.environ.get("TERM") == "dumb"


def has_colours(stream: TextIO) -> bool:
    """Whether colours may be sent: to a terminal, unless NO_COLOR or --no-color says no."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and not is_dumb()


def columns() -> int:
    """Width of the terminal; 80 where none is known."""
    return shutil.get_terminal_size().columns


def dim(text: str, stream: TextIO) -> str:
    """A remark, less bright where colours are."""
    return f"{DIM}{text}{OFF}" if has_colours(stream) else text


def fitted(text: str, stream: TextIO, indent: str = "") -> str:
    """A text of any origin as `stream` takes it: harmless and broken between words on a terminal, else as it is."""
    if not stream.isatty():
        return text
    return fold(printable(text), columns(), indent)


def bar_console() -> Console:
    """Where progress bars are drawn: stderr, less some columns.

    Ctrl-C is echoed behind the bar; were that in a next line, the bar would not be found again.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        console.width -= len("^C^C")
    return console


def remark(text: str) -> None:
    """One line on stderr that nobody should miss."""
    print(fitted(f"paceline: {text}", sys.stderr, "  "), file=sys.stderr, flush=True)


class Stream:
    """Text on its way to stdout, piece by piece: on a terminal without control characters and broken between words."""

    def __init__(self) -> None:
        self._wrap = WordWrap(columns()) if sys.stdout.isatty() else None
        self.line_open = False
        """Whether the last line has no end yet."""

    def write(self, text: str, colour: str = "") -> None:
        """Show a piece, on a terminal in one colour."""
        if not text:
            return
        if self._wrap:
            self._wrap.resize(columns())  # windows change while answers are waited for, and while they come
            self._send(self._wrap.write(printable(text), colour))
        else:
            self._send(text)
        self.line_open = not text.endswith("\n")

    def close(self) -> None:
        """The text has ended: show what waited for the end of its word, and end the line."""
        if self._wrap:
            self._send(self._wrap.flush())
        if self.line_open:
            self._send("\n")
        self.line_open = False

    @staticmethod
    def _send(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _no_colour(wanted: bool) -> None:
    if wanted:
        os.environ["NO_COLOR"] = "1"


NoColourFlag = Annotated[
    bool,
    typer.Option("--no-color", is_eager=True, callback=_no_colour, help="No colours; as NO_COLOR=1 does."),
]
