"""What an export ends with when it cannot be made, and what libraries say, in a line."""

from __future__ import annotations

from paceline.memory.errors import Error


class ExportError(Error):
    """A model that cannot be exported; the message is one line that names the cause."""


def first_line(error: BaseException) -> str:
    """What an error of a library says first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
