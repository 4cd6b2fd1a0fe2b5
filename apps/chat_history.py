"""What was typed in earlier chats, for the up arrow: one JSON text a line, in the user's cache folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

from paceline.runtime.bundle.measurements import cache_folder
from paceline.runtime.bundle.whole_file import write_atomically

MOST, LONGEST = 1000, 20_000
"""Messages that are kept, and characters of one: longer ones are not."""
_LARGEST_FILE = 64_000_000
"""Bytes; a file beyond it was not written here."""


class InputHistory:
    """A file that only its owner may read. What cannot be read or written costs nothing but the memory of it."""

    def __init__(self, path: Path | None = None) -> None:
        """path: None is `chat_history` in the cache folder."""
        folder = cache_folder()
        self._path = path or (None if folder is None else folder / "chat_history")

    def load(self) -> list[str]:
        """The messages, oldest first; a file that has grown too long is shortened."""
        path = self._path
        try:
            if path is None or not path.is_file() or path.stat().st_size > _LARGEST_FILE:
                return []
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            if len(lines) > 2 * MOST:
                lines = lines[-MOST:]
                write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
        except OSError:
            return []
        found = (_text(line) for line in lines[-MOST:])
        return [text for text in found if text is not None]

    def add(self, text: str) -> None:
        """Remember one more."""
        if self._path is None or len(text) > LONGEST:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _REGULAR, 0o600)
            with os.fdopen(handle, "ab") as file:
                file.write(json.dumps(text).encode() + b"\n")
        except OSError:
            return


_REGULAR = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""No link is followed, and a pipe of that name is not waited for."""


def _text(line: str) -> str | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, str) else None
