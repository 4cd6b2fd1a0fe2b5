"""What a chat shows: streamed answers, notes, and who drafted what."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

from paceline.errors import complain
from paceline.printable import printable
from paceline.terminal import DIM, Stream, dim, fitted, has_colours, remark
from paceline.wrap import OFF

if TYPE_CHECKING:
    from paceline.runtime.events import Event

_COLOURS = (32, 36, 35, 33, 34, 31, 92, 96, 95, 93, 94, 91)
_STYLES = ("", "4;", "7;", "4;7;")
"""Plain, underlined, reversed, both: as many looks as there can be sources."""


class Screen:
    """stdout and stderr of a chat; without a terminal there are answers only, no decoration."""

    def __init__(self, interactive: bool) -> None:
        self.interactive = interactive
        self._colours = interactive and has_colours(sys.stdout)
        self._look_of: dict[str, str] = {}
        self._drafted: Counter[str | None] = Counter()
        self._stream = Stream()

    def note(self, text: str) -> None:
        """A remark for people; a pipe does not get it."""
        if self.interactive:
            self._end_line()
            print(dim(fitted(printable(text), sys.stdout), sys.stdout), flush=True)

    def warn(self, text: str) -> None:
        """A remark that nobody should miss: without a terminal it goes to stderr."""
        if self.interactive:
            self.note(text)
        else:
            self._end_line()
            remark(text)

    def tell(self, text: str, indent: str = "") -> None:
        """What a command was asked for; lines that are broken go on after `indent`."""
        self._end_line()
        print(fitted(printable(text) if self.interactive else text, sys.stdout, indent), flush=True)

    def error(self, text: str) -> None:
        """One line on stderr; a terminal gets it broken between words."""
        self._end_line()
        complain(text)

    def piece(self, event: Event, show_draft: bool = False) -> None:
        """One token of the answer, in the colour of its drafter if that is to be seen."""
        if event.token is not None:
            self._drafted[event.source] += 1
        coloured = event.source is not None and show_draft and self._colours
        self._stream.write(event.text, self.look(str(event.source)) if coloured else "")

    def interrupted(self) -> None:
        """Ctrl-C was echoed by the terminal: go to a fresh line."""
        self._stream.line_open = True

    def end_answer(self, remark: str = "", show_draft: bool = False) -> None:
        """Close the answer's last line; say whose tokens it was made of, if that is to be seen, and a remark."""
        self._end_line()
        if show_draft and self._drafted and self.interactive:
            print(self._legend())
        if remark:
            self.note(remark)
        self._drafted.clear()

    def gap(self) -> None:
        """A blank line before the next prompt of a terminal."""
        if self.interactive:
            self._end_line()
            print(flush=True)

    def _legend(self) -> str:
        own = self._drafted.pop(None, 0)
        counts = [(printable(str(source)), n, source) for source, n in self._drafted.most_common()]
        counts.append(("the target itself", own, None))
        plain = ", ".join(f"{'■ ' if self._colours else ''}{name} {n}" for name, n, _ in counts)
        text = fitted(plain, sys.stdout)
        if not self._colours:
            return text
        for _, _, source in counts:
            look = "" if source is None else self.look(str(source))
            text = text.replace("■", f"{OFF}{look}\0{OFF}{DIM}", 1)
        return f"{DIM}{text}{OFF}".replace("\0", "■")

    def look(self, source: str) -> str:
        """An escape sequence of the source's own."""
        number = len(self._look_of)
        style = _STYLES[number // len(_COLOURS) % len(_STYLES)]
        return self._look_of.setdefault(source, f"\033[{style}{_COLOURS[number % len(_COLOURS)]}m")

    def _end_line(self) -> None:
        self._stream.close()
        self._stream = Stream()
