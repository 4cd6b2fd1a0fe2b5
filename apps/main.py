"""Where the `paceline` command starts. Little is imported here: Ctrl-C may come at any time."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO, cast

from paceline.interrupts import first_interrupt_counts

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

INTERRUPTED = 130
STDOUT = "stdout"
"""The file name of an error of writing to it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    _open_closed_streams()
    if arguments is None:
        _name_stdout()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with first_interrupt_counts(until_exit=arguments is None):
            return _run(given)
    except KeyboardInterrupt:
        return INTERRUPTED


def _open_closed_streams() -> None:
    """A stream that was closed by the caller (`>&-`) is None in Python. Nothing can be read then; an answer that
    cannot be written is an error, as on a full disk.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  (stays open, as stdin does)
    if sys.stdout is None:
        unwritable = os.open(os.devnull, os.O_RDONLY)
        sys.stdout = open(unwritable, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _name_stdout() -> None:
    """Let errors of writing to a file or a pipe say that it was stdout: unbuffered, nothing tells it afterwards."""
    before = sys.stdout
    if before.isatty():
        return
    raw = _Stdout(before.fileno(), "w", closefd=False)
    direct = bool(getattr(before, "write_through", False))
    sys.stdout = io.TextIOWrapper(
        cast(BinaryIO, raw if direct else io.BufferedWriter(raw)),
        encoding="utf-8",
        newline=None,
        line_buffering=bool(before.line_buffering),
        write_through=direct,
    )


class _Stdout(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, STDOUT) from None


def _run(given: list[str]) -> int:
    try:
        from paceline.commands import invoke
        from paceline.errors import friendly_errors
    except KeyboardInterrupt:
        return INTERRUPTED
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    return friendly_errors(lambda: invoke(given))


if __name__ == "__main__":
    sys.exit(main())
