"""Where the `paceline` command starts. Little is imported here: Ctrl-C may come at any time."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from paceline.interrupts import first_interrupt_counts

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    _open_closed_streams()
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
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


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
