"""What a chat shows: streamed answers, notes, and who drafted what."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING

from paceline.errors import complain
from paceline.printable import fit_for, printable, say
from paceline.wrap import OFF, WordWrap

if TYPE_CHECKING:
    from paceline.runtime.events import Event

_DIM = "\033[2m"
_PALETTE = ("\033[32m", "\033[36m", "\033[35m", "\033[33m", "\033[34m")


class Screen:
    """stdout and stderr of a chat; without a terminal there are answers only, no decoration."""

    def __init__(self, interactive: bool, show_draft: bool) -> None:
        self.interactive = interactive
        self.show_draft = show_draft
        self._colours = interactive and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._colour_of: dict[str, str] = {}
        self._drafted: Counter[str | None] = Counter()
        self._wrap: WordWrap | None = None
        self._line_open = False

    def note(self, text: str) -> None:
        """A remark for people; a pipe does not get it."""
        self._remark(printable(text))

    def warn(self, text: str) -> None:
        """A remark that nobody should miss: without a terminal it goes to stderr."""
        if self.interactive:
            for line in textwrap.wrap(text, shutil.get_terminal_size().columns):
                self.note(line)
        else:
            self._end_line()
            print(f"paceline: {printable(text)}", file=sys.stderr, flush=True)

    def _remark(self, text: str) -> None:
        if self.interactive:
            self._end_line()
            print(f"{_DIM}{text}{OFF}" if self._colours else text)

    def tell(self, text: str) -> None:
        """What a command was asked for."""
        self._end_line()
        say(printable(text) if self.interactive else text)

    def error(self, text: str) -> None:
        """One line on stderr; a terminal gets it broken between words."""
        self._end_line()
        broken = self.interactive and sys.stderr.isatty()
        complain(text, shutil.get_terminal_size().columns if broken else None)

    def piece(self, event: Event) -> None:
        """One token of the answer."""
        if event.token is not None:
            self._drafted[event.source] += 1
        if not event.text:
            return
        coloured = event.source is not None and self.show_draft and self._colours
        colour = self._colour(str(event.source)) if coloured else ""
        sys.stdout.write(self._wrapped(event.text, colour))
        sys.stdout.flush()
        self._line_open = not event.text.endswith("\n")

    def interrupted(self) -> None:
        """Ctrl-C was echoed by the terminal: go to a fresh line."""
        self._line_open = True

    def _wrapped(self, text: str, colour: str) -> str:
        if not self.interactive:
            return fit_for(sys.stdout, text)
        if os.environ.get("TERM") == "dumb":
            return printable(text)
        if self._wrap is None:
            self._wrap = WordWrap(shutil.get_terminal_size().columns)
        return self._wrap.write(printable(text), colour)

    def end_answer(self) -> None:
        """Close the answer's last line; with --show-draft, say whose tokens it was made of."""
        self._end_line()
        if self.show_draft and self._drafted:
            own = self._drafted.pop(None, 0)
            parts = [
                f"{self._mark(source)}{printable(str(source))} {n}"
                for source, n in self._drafted.most_common()
            ]
            self._remark(", ".join([*parts, f"{self._mark(None)}the target itself {own}"]))
        self._drafted.clear()

    def _colour(self, source: str) -> str:
        return self._colour_of.setdefault(source, _PALETTE[len(self._colour_of) % len(_PALETTE)])

    def _mark(self, source: str | None) -> str:
        if not self._colours:
            return ""
        return f"{OFF}{'' if source is None else self._colour(source)}■{OFF}{_DIM} "

    def _end_line(self) -> None:
        if self._line_open:
            print(flush=True)
            self._line_open = False
        self._wrap = None
