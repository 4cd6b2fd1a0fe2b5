"""Text of unknown origin made harmless for a terminal."""

from __future__ import annotations

import json
import re
import sys
from typing import TextIO

# C0 but tab and line feed, DEL, C1 (a terminal may take U+009B for the start of a sequence), and the marks
# that turn the direction of writing around.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` without control characters; tabs and line breaks stay."""
    return _CONTROLS.sub("", text)


def fit_for(stream: TextIO, text: str) -> str:
    """What `stream` may be sent of a text that a model, a file or a manifest gave: a pipe or a file all of it."""
    return printable(text) if stream.isatty() else text


def say(*lines: str, to: TextIO | None = None) -> None:
    """Print lines (to stdout) that may hold what a model, a file or a manifest gave."""
    stream = to or sys.stdout
    for line in lines:
        print(fit_for(stream, line), file=stream)
    stream.flush()


def say_json(found: object, readable: bool = False) -> None:
    """Print one line of JSON; control characters are escaped, so that it can be shown anywhere.

    readable: whether characters outside ASCII stand as they are.
    """
    text = json.dumps(found, ensure_ascii=not readable)
    print(_CONTROLS.sub(lambda control: f"\\u{ord(control[0]):04x}", text))
