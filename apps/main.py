"""Where the `paceline` command starts. Little is imported here: Ctrl-C may come at any time."""

from __future__ import annotations

import sys
from collections.abc import Sequence

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
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
