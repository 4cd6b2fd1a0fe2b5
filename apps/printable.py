"""Text of unknown origin made harmless for a terminal."""

from __future__ import annotations

import re

# C0 but tab and line feed, DEL, C1 (a terminal may take U+009B for the start of a sequence), and the marks
# that turn the direction of writing around.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` without control characters; tabs and line breaks stay."""
    return _CONTROLS.sub("", text)
