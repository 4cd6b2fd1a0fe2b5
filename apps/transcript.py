"""Saved chats: one JSON file that is written whole or not at all, and read strictly.

Form 2 ends with a sha256 of all that stands before it. Form 1, which had none, is still read.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from paceline.runtime.bundle.whole_file import write_atomically

VERSION = 2
LARGEST_FILE = 64_000_000
"""Bytes."""


class Transcript(Struct, frozen=True, forbid_unknown_fields=True):
    """A chat. messages: role (user or assistant) and content. bundle: the one it was held with."""

    system: str | None
    messages: tuple[dict[str, str], ...]
    bundle: str | None = None
    paceline_chat: Annotated[int, Meta(ge=1)] = VERSION
    """The version of this form; also what tells a chat from any other JSON file."""


def save(path: Path, transcript: Transcript) -> None:
    """Write the chat. Raises ValueError, with every file as it was, if the place is taken or cannot be
    written.
    """
    check_place(path)
    try:
        content = _sealed(
            msgspec.json.format(msgspec.json.encode(transcript), indent=1).removesuffix(_CLOSING.rstrip())
        )
        load_bytes(content, path)
        write_atomically(path, content)
    except UnicodeEncodeError:
        raise ValueError(
            "the chat holds half a character and cannot be saved: /regen or /clear first"
        ) from None
    except OSError as error:
        raise ValueError(f"{error.filename or path} cannot be written: {error.strerror}") from None


def check_place(path: Path) -> None:
    """Raise ValueError where something else than a saved chat stands."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file name")
    if path.exists() and not _is_chat(path):
        raise ValueError(
            f"{path} holds something else than a saved chat and was left alone: choose another name"
        )


def load(path: Path) -> Transcript:
    """Read a saved chat. Raises ValueError, one line, for anything else."""
    try:
        if not path.is_file():
            raise ValueError(f"there is no saved chat at {path}")
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path} is no saved chat: it is larger than {LARGEST_FILE} bytes")
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    return load_bytes(raw, path)


def load_bytes(raw: bytes, path: Path) -> Transcript:
    """The chat in `raw`, half a character in it as U+FFFD; `path` is for the message. Raises ValueError."""
    try:
        version = msgspec.json.decode(_whole(raw), type=_Version).paceline_chat
        if version > VERSION:
            raise ValueError(f"{path} was saved by a newer paceline (form {version}): upgrade to read it")
        if version == VERSION:
            body, sealed = raw[:-_SEAL], raw
            raw = body + _CLOSING
            if sealed != _sealed(body):
                raise ValueError(
                    f"{path} is damaged or was changed: its checksum is wrong (if you changed it yourself, take its "
                    "last field away and write 1 for paceline_chat)"
                )
        transcript = msgspec.json.decode(_whole(raw), type=Transcript)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no saved chat, or it is damaged: {' '.join(str(error).split())[:160]}"
        ) from None
    for number, message in enumerate(transcript.messages, 1):
        if message.keys() != {"role", "content"} or message["role"] not in ("user", "assistant"):
            raise ValueError(f"{path} is damaged: turn {number} is not of user or assistant with a content")
    return transcript


def _whole(raw: bytes) -> bytes:
    """JSON without halves of characters, which its grammar allows and no UTF-8 text can hold."""
    return _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], raw)


_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
    re.DOTALL,
)
"""A character in two escapes, half of one (the group), any other escape."""


def _sealed(body: bytes) -> bytes:
    """A chat without its closing brace, completed by its checksum."""
    return body + b',\n "sha256": "%s"' % hashlib.sha256(body).hexdigest().encode() + _CLOSING


_CLOSING = b"\n}\n"
_SEAL = len(_sealed(b""))


class _Version(Struct):
    paceline_chat: int


def _is_chat(path: Path) -> bool:
    try:
        load(path)
    except ValueError:
        return False
    return True
