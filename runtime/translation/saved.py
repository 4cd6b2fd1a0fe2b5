"""What an n-gram cache learnt, kept from session to session: a file for each user and pair of vocabularies.

It holds tokens of the target that were used with this draft model, and the draft tokens that spell them; no order, no
text. File: a digest (sha256) of all that follows, and that as MessagePack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from paceline.runtime.bundle.measurements import cache_folder
from paceline.runtime.bundle.whole_file import alone, write_atomically
from paceline.runtime.translation.sides import Sides

_FOLDER, _VERSION, _DIGEST, _LARGEST = "ngrams", 1, 32, 1 << 26
Entry = tuple[int, tuple[int, ...]]


class _Saved(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    pair: str
    entries: list[Entry]


class SavedNgrams:
    """The file of one pair. pair: names both vocabularies."""

    def __init__(self, sides: Sides, pair: str) -> None:
        self._sides, self._pair = sides, pair
        folder = cache_folder()
        self.path = (
            None
            if folder is None
            else folder / _FOLDER / f"{hashlib.sha256(pair.encode()).hexdigest()[:32]}.ngrams"
        )

    def load(self) -> None:
        """Fill the cache with what was saved; nothing where there is no such file, or none that makes sense."""
        self._sides.ngrams.fill(self._read())

    def save(self) -> None:
        """Add what is known now to what the file holds by now, whole or not at all. A folder that cannot be written
        costs only what was learnt.
        """
        if self.path is None or not self._sides.ngrams.fresh:
            return
        try:
            with alone(self.path):
                known = dict(self._read())
                for token, run in self._sides.ngrams.entries():
                    known.pop(token, None)
                    known[token] = run
                body = msgspec.msgpack.encode(_Saved(_VERSION, self._pair, list(known.items())))
                write_atomically(self.path, hashlib.sha256(body).digest() + body)
        except OSError:
            return
        self._sides.ngrams.fresh = 0

    def _read(self) -> Iterable[Entry]:
        """Entries whose draft tokens really spell their token: no file can make a draft wrong."""
        saved = _decode(self.path)
        if saved is None or (saved.version, saved.pair) != (_VERSION, self._pair):
            return []
        draft, target = self._sides.draft, self._sides.target
        return [
            (token, run)
            for token, run in saved.entries
            if 0 <= token < len(target)
            and len(run) > 1
            and all(0 <= piece < len(draft) for piece in run)
            and target.pieces[token] == draft.spells(run)
        ]


def _decode(path: Path | None) -> _Saved | None:
    try:
        if path is None or not path.is_file() or path.stat().st_size > _LARGEST:
            return None
        raw = path.read_bytes()
        if hashlib.sha256(raw[_DIGEST:]).digest() != raw[:_DIGEST]:
            return None
        return msgspec.msgpack.decode(raw[_DIGEST:], type=_Saved)
    except (OSError, msgspec.MsgspecError):
        return None
