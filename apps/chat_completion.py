"""What Tab offers in a chat: commands, settings and their values, drafters, files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def complete(
    line: str, commands: Sequence[str], settings: Mapping[str, Sequence[str]]
) -> tuple[int, list[str]]:
    """Where in `line` the text begins that is not complete yet, and what it may become.

    settings: the values of each, as far as they are words.
    """
    word, space, rest = line.partition(" ")
    command = word.lower()
    if not space:
        return 0, [f"/{name} " for name in commands if name.startswith(command[1:])]
    at = len(word) + 1
    if command in ("/save", "/load"):
        return at, _files(rest)
    if command == "/stats":
        return at, _beginning(rest, ["full"])
    if command != "/set":
        return at, []
    name, space, value = rest.partition(" ")
    if not space:
        return at, [f"{known} " for known in _beginning(name, settings)]
    return at + len(name) + 1, _beginning(value, settings.get(name, ()))


def _beginning(begun: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(begun)]


def _files(begun: str) -> list[str]:
    """Files and folders whose names go on from here."""
    folder, _, name = begun.rpartition("/")
    place = f"{folder}/" if "/" in begun else ""
    try:
        found = sorted(os.scandir(Path(place or ".").expanduser()), key=lambda entry: entry.name)
        hidden = name.startswith(".")
        return [
            f"{place}{entry.name}{'/' if entry.is_dir() else ''}"
            for entry in found
            if entry.name.startswith(name) and (hidden or not entry.name.startswith("."))
        ]
    except (OSError, RuntimeError):
        return []
