"""The `paceline` command on a pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

needs_terminal = pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminal")
_PATIENCE = 60.0
"""Seconds: far more than anything here takes, also beside other work."""


class Terminal:
    """A command whose streams are a terminal of some columns; with `stdin` it reads that text from a pipe instead."""

    def __init__(
        self, *arguments: str | Path, stdin: str | None = None, columns: int = 80, **environment: str
    ) -> None:
        import pty

        self._ours, theirs = pty.openpty()
        self.resize(columns)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "paceline.main", *map(str, arguments)],
            stdin=theirs if stdin is None else subprocess.PIPE,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns), **environment},
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        if self.process.stdin is not None:
            self.process.stdin.write((stdin or "").encode())
            self.process.stdin.close()
        self.raw = ""
        self._taken = 0

    def resize(self, columns: int) -> None:
        """Give the window so many columns; a command with COLUMNS in its environment believes that instead."""
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, words: str) -> str:
        """What was shown up to these words; what follows them is kept for the next call."""
        end = time.monotonic() + _PATIENCE
        while words not in (shown := shown_by(self.raw)[self._taken :]):
            assert time.monotonic() < end, shown
            self._read()
        before = shown.partition(words)[0] + words
        self._taken += len(before)
        return before

    def interrupt(self, words: str) -> str:
        """Press Ctrl-C until these words come, as in `rest`."""
        for _ in range(20):
            self.type("\x03")
            end = time.monotonic() + _PATIENCE / 20
            while time.monotonic() < end:
                if words in shown_by(self.raw)[self._taken :]:
                    return self.until(words)
                self._read()
        raise AssertionError(shown_by(self.raw)[self._taken :])

    def rest(self, pressed: str = "") -> str:
        """What was sent until the command ended, with a key pressed each second meanwhile.

        A line reader misses a Ctrl-C between its prompt and its first look.
        """
        end = time.monotonic() + _PATIENCE
        due = time.monotonic() + 1
        while self._read():
            assert time.monotonic() < end, self.raw
            if pressed and time.monotonic() > due:
                with contextlib.suppress(OSError):  # it ended meanwhile
                    self.type(pressed)
                due = time.monotonic() + 1
        return self.raw

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> bool:
        """Take what there is; False once the other side has gone."""
        if select.select([self._ours], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):
                found = os.read(self._ours, 65536)
                self.raw += found.decode(errors="replace")
                return bool(found)
            return False
        return True


def shown_by(raw: str) -> str:
    """The text without escape sequences; a jump to the right is spaces, a sequence without its end is left out."""
    text = _JUMP.sub(lambda jump: " " * int(jump[1] or 1), raw)
    return _SEQUENCE.sub("", text).partition("\x1b")[0]


_JUMP = re.compile(r"\x1b\[(\d*)C")
_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(1, termios.TIOCSCTTY, 0)
