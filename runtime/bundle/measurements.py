"""What was measured on this device before: small JSON files in the user's cache folder."""

from __future__ import annotations

import json
from pathlib import Path

from paceline.runtime.bundle.bundle import cache_folder
from paceline.runtime.bundle.whole_file import write_atomically


def read_all(name: str) -> dict[str, object]:
    """Every value of a file by its key; nothing where there is no such file, or where it makes no sense."""
    path = _path(name)
    try:
        found = json.loads(path.read_bytes()) if path is not None and path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def keep(name: str, key: str, value: object, most: int) -> None:
    """Add a value, newest last, `most` at most; a folder that cannot be written costs only a new measurement."""
    path = _path(name)
    if path is None:
        return
    known = read_all(name) | {key: value}
    try:
        write_atomically(path, json.dumps(dict(list(known.items())[-most:])).encode())
    except OSError:
        return


def _path(name: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / name
