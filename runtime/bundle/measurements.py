"""What is known on this device from before: small JSON files in the user's cache folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from paceline.runtime.bundle.whole_file import write_atomically

_LARGEST = 1 << 22
"""Bytes; what is written has some hundred kilobytes at most."""


def read_all(name: str) -> dict[str, object]:
    """Every value of a file by its key; nothing where there is no such file, or where it makes no sense."""
    path = in_cache_folder(name)
    try:
        if path is None or not path.is_file() or path.stat().st_size > _LARGEST:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def keep(name: str, key: str, value: object, most: int) -> None:
    """Add a value, newest last, `most` at most; a folder that cannot be written costs only a new measurement."""
    keep_all(name, {key: value}, most)


def keep_all(name: str, values: Mapping[str, object], most: int) -> None:
    """Add values as `keep` does. The folder is made for its owner only: what it holds is trusted."""
    path = in_cache_folder(name)
    if path is None:
        return
    known = {key: value for key, value in read_all(name).items() if key not in values} | dict(values)
    try:
        _make(path.parent)
        write_atomically(path, json.dumps(dict(list(known.items())[-most:])).encode())
    except OSError:
        return


def own_folder(name: str) -> Path | None:
    """A folder of this name there, made for its owner only; None where it cannot be made."""
    path = in_cache_folder(name)
    try:
        if path is not None:
            _make(path)
    except OSError:
        return None
    return path


def _make(folder: Path) -> None:
    for place in (*reversed(folder.parents), folder):
        place.mkdir(mode=0o700, exist_ok=True)


def cache_folder() -> Path | None:
    """Where the user's caches live: `PACELINE_CACHE`, else the XDG cache folder; None for a user without home."""
    try:
        if own := os.environ.get("PACELINE_CACHE"):
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline"
    except RuntimeError:
        return None


def in_cache_folder(name: str) -> Path | None:
    """A file or folder of this name there, None for a user without one."""
    folder = cache_folder()
    return None if folder is None else folder / name
