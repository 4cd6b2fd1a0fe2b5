"""What every error that a caller may want to handle is."""

from __future__ import annotations


class Error(Exception):
    """Of Paceline; the message is one line that names the cause and, where there is one, a remedy."""


class ArgumentError(Error, ValueError):
    """An argument, a file that it names, or the state of a session, with which a call cannot work."""
