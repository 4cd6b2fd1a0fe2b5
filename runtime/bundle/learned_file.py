"""What was learnt of a draft model and a target, kept from session to session: a file of the user's for each pair.

File: a digest (sha256) of all that follows, and that as MessagePack.
"""

from __future__ import annotations

import hashlib
from typing import Generic, TypeVar

import msgspec

from paceline.runtime.bundle.measurements import in_cache_folder
from paceline.runtime.bundle.whole_file import write_atomically

_DIGEST = 32


class Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every such file holds."""

    version: int
    pair: str


C = TypeVar("C", bound=Content)


class LearnedFile(Generic[C]):
    """The file of one pair. kind: its folder, and how its name ends. pair: names both sides; None: there is no file,
    and none is written. largest: bytes of a file that is read.
    """

    def __init__(self, kind: str, pair: str | None, content: type[C], version: int, largest: int) -> None:
        folder = None if pair is None else in_cache_folder(kind)
        name = f"{hashlib.sha256((pair or '').encode()).hexdigest()[:32]}.{kind}"
        self.path = None if folder is None else folder / name
        self._kind, self._pair, self._content = kind, pair, content
        self._version, self._largest = version, largest

    def read(self) -> C | None:
        """What it holds, None where there is no file. Raises ValueError with the reason why it cannot be used, OSError
        as the disk does.
        """
        if self.path is None or not self.path.exists():
            return None
        if not self.path.is_file() or self.path.stat().st_size > self._largest:
            raise ValueError(f"it is no file of {self._kind}")
        raw = self.path.read_bytes()
        if hashlib.sha256(raw[_DIGEST:]).digest() != raw[:_DIGEST]:
            raise ValueError("it is damaged (its checksum is wrong)")
        try:
            found = msgspec.msgpack.decode(raw[_DIGEST:], type=self._content)
        except msgspec.MsgspecError as error:
            raise ValueError(" ".join(str(error).split())) from None
        if found.version != self._version:
            raise ValueError(f"it has version {found.version}, and this paceline reads {self._version}")
        if found.pair != self._pair:
            raise ValueError("it was learnt with another draft model, or for another target")
        return found

    def write(self, content: C) -> None:
        """Write it whole or not at all, for its owner only. Raises OSError."""
        if self.path is not None:
            body = msgspec.msgpack.encode(content)
            write_atomically(self.path, hashlib.sha256(body).digest() + body)
