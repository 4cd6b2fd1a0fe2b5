"""Where the messages of a chat come from: a pipe, a terminal with an editor, or one without."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from paceline.terminal import is_dumb

Complete = Callable[[str], tuple[int, list[str]]]
"""Where in a line that begins with a slash its unfinished end begins, and what that may become."""
BLOCK = '"""'
PROMPT, CONTINUED = ">>> ", "... "


class Reader(Protocol):
    """Gives messages and commands one by one."""

    def read(self) -> str | None:
        """The next one, None at the end of the input. Raises KeyboardInterrupt for Ctrl-C."""

    def aside(self) -> AbstractContextManager[None]:
        """Something else is shown meanwhile; what is typed waits for its turn."""


class LineReader:
    """Lines of a pipe, or of a terminal that obeys no escape sequences."""

    def __init__(self, next_line: Callable[[str], str | None]) -> None:
        """next_line: gets the prompt to show, gives a line without its end, None at the end of the input."""
        self._next_line = next_line

    def read(self) -> str | None:
        """A message ends with its line, unless a backslash or an open block says that it goes on."""
        text = ""
        while True:
            line = self._next_line(CONTINUED if text else PROMPT)
            if line is None:
                return unquoted(text) if text else None
            text += line
            if text.endswith("\\") and not is_open(text):
                text = text[:-1] + "\n"
            elif is_open(text):
                text += "\n"
            else:
                return unquoted(text)

    def aside(self) -> AbstractContextManager[None]:
        """Nothing to do: a terminal without an editor shows what is typed at once."""
        return nullcontext()


def make_reader(interactive: bool, complete: Complete, keeps_history: bool) -> Reader:
    """What suits stdin. keeps_history: whether what is typed is kept for the next chat."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    if not interactive:
        return LineReader(_piped)
    if is_dumb():
        return LineReader(_typed)
    from paceline.chat_editor import Editor

    return Editor(complete, keeps_history)


def is_open(text: str) -> bool:
    """Whether `text` begins a block of lines that has no end yet."""
    return text.lstrip().startswith(BLOCK) and text.count(BLOCK) % 2 == 1


def unquoted(text: str) -> str:
    """The message in a block; other texts as they are."""
    inside = text.strip()
    if not inside.startswith(BLOCK):
        return text
    inside = inside.removeprefix(BLOCK).removesuffix(BLOCK).strip("\n")
    return f" {inside}" if inside.startswith("/") else inside  # a block is never a command


def _piped(prompt: str) -> str | None:
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def _typed(prompt: str) -> str | None:
    try:
        return input(prompt)
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()  # the terminal has echoed it
        raise
