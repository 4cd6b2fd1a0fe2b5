"""Token sequences of earlier sessions, in one file that the user names, looked up by their contexts.

File (little endian): magic, version, 32 bytes of tokenizer fingerprint, number of sequences and
of tokens, the lengths (uint32 each), the tokens (uint32 each), and the sha256 of everything before it.
"""

from __future__ import annotations

import hashlib
import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from paceline.memory.errors import ArgumentError
from paceline.runtime.bundle.whole_file import alone, write_atomically

_MAGIC = b"paceline suffixes"
_VERSION = 1
_HEAD = struct.Struct("<17sB32sQQ")
_DIGEST = 32
LONGEST = 16
"""Contexts are told apart by this many tokens."""
MOST_BYTES = 1_000_000
"""Of the file, unless told otherwise."""
_SORTING = 18
"""Bytes in memory at most for each of the file's: the tokens, and wider arrays while their contexts are sorted."""
_SHORTEST = 4
"""Sequences of fewer tokens teach nothing and are not kept."""


STORE_BYTES = MOST_BYTES * _SORTING
"""What a store takes in memory at most."""


class SuffixStore:
    """What earlier sessions said: the newest sequences that fit into `most_bytes` on disk.

    A session's own sequence enters by `remember` and is searched once another one has followed it.
    """

    def __init__(
        self, path: Path, fingerprint: str, most_bytes: int = MOST_BYTES, vocab: int | None = None
    ) -> None:
        least = _HEAD.size + _DIGEST + 4 * (1 + _SHORTEST)
        if most_bytes < least:
            raise ArgumentError(
                f"a suffix store of {most_bytes} bytes holds nothing: give it {least} or more"
            )
        self._path, self._most, self._vocab = path, most_bytes, vocab
        self._mark = hashlib.sha256(fingerprint.encode()).digest()
        self._sequences: list[npt.NDArray[np.uint32]] = []
        self._unsaved: list[npt.NDArray[np.uint32]] = []
        self._open: list[int] = []
        self._contexts: Contexts | None = None
        self._lock = Lock()  # sessions in several threads may share a store

    @classmethod
    def open(
        cls, path: Path, fingerprint: str, most_bytes: int = MOST_BYTES, vocab: int | None = None
    ) -> SuffixStore:
        """Read the file; one that does not exist yet is an empty store.

        fingerprint: names the tokenizer. vocab: ids from here on are damage. Raises ValueError when it
        is no file, is damaged, is no store, or was made with another tokenizer.
        """
        store = cls(path, fingerprint, most_bytes, vocab)
        store._sequences = store._newest(store._read())
        return store

    def __len__(self) -> int:
        return len(self._sequences) + bool(self._open)

    @property
    def nbytes(self) -> int:
        """Bytes in memory at most."""
        return self._most * _SORTING

    def remember(self, tokens: Sequence[int]) -> None:
        """Take in a sequence; one that continues the sequence remembered last replaces it."""
        tokens = [int(t) for t in tokens]
        with self._lock:
            if self._open and self._open != tokens[: len(self._open)]:
                self._close()
            self._open = tokens

    def contexts(self) -> Contexts:
        """The closed sequences, ready to be searched."""
        with self._lock:
            if self._contexts is None:
                self._contexts = Contexts(self._sequences)
            return self._contexts

    def save(self) -> None:
        """Add what was remembered since to what the file holds now, whole or not at all, for its owner only.

        Raises OSError as the disk does, ValueError for a file that `open` would refuse by now.
        """
        path = self._path.resolve()
        with self._lock, alone(path):
            self._close()
            kept = self._newest([*self._read(), *self._unsaved])
            write_atomically(path, _encode(kept, self._mark))
            self._unsaved = []

    def _read(self) -> list[npt.NDArray[np.uint32]]:
        """The sequences of the file, none where there is no file."""
        path = self._path
        if path.exists() and not path.is_file():
            raise ArgumentError(f"{path} is no file that can hold a suffix store: name another one")
        if not path.exists() and not path.is_symlink():
            return []
        found = _decode(path, self._mark)
        if self._vocab is not None and any(len(s) and int(s.max()) >= self._vocab for s in found):
            raise _damaged(path)
        return found

    def _close(self) -> None:
        if len(self._open) >= _SHORTEST:
            said = np.array(self._open, np.uint32)
            self._sequences = self._newest([*self._sequences, said])
            self._unsaved = self._newest([*self._unsaved, said])
            self._contexts = None
        self._open = []

    def _newest(self, sequences: Sequence[npt.NDArray[np.uint32]]) -> list[npt.NDArray[np.uint32]]:
        """What fits into the file: the oldest sequences go; of one that alone is too long the end stays."""
        left = self._most - _HEAD.size - _DIGEST
        kept: list[npt.NDArray[np.uint32]] = []
        for sequence in reversed(sequences):
            room = left // 4 - 1
            if len(sequence) > room and kept:
                break
            kept.append(sequence[-room:])
            left -= 4 * (len(kept[-1]) + 1)
        return kept[::-1]


def _encode(sequences: Sequence[npt.NDArray[np.uint32]], mark: bytes) -> bytes:
    lengths = np.array([len(s) for s in sequences], "<u4")
    body = b"".join([lengths.tobytes(), *(s.astype("<u4").tobytes() for s in sequences)])
    head = _HEAD.pack(_MAGIC, _VERSION, mark, len(sequences), int(lengths.sum()))
    return head + body + hashlib.sha256(head + body).digest()


def _decode(path: Path, mark: bytes) -> list[npt.NDArray[np.uint32]]:
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
        if not head.startswith(_MAGIC):
            raise ArgumentError(f"{path} is not a suffix store: name another file")
        if len(head) < _HEAD.size:
            raise _damaged(path)
        _, version, made_with, count, total = _HEAD.unpack(head)
        if version != _VERSION:
            raise ArgumentError(
                f"{path} has version {version}, this program reads version {_VERSION}: delete the file"
            )
        size = 4 * (count + total)
        if os.fstat(file.fileno()).st_size != _HEAD.size + size + _DIGEST:
            raise _damaged(path)
        body, digest = file.read(size), file.read(_DIGEST)
    if hashlib.sha256(head + body).digest() != digest:
        raise _damaged(path)
    if made_with != mark:
        raise ArgumentError(f"{path} was made with another tokenizer: name another file for this model")
    numbers = np.frombuffer(body, "<u4").astype(np.uint32)
    ends = np.cumsum(numbers[:count], dtype=np.int64)
    if int(ends[-1] if count else 0) != total:
        raise _damaged(path)
    return np.split(numbers[count:], ends[:-1]) if count else []


def _damaged(path: Path) -> ArgumentError:
    return ArgumentError(f"{path} is damaged: delete it, or name another file")


class Contexts:
    """All positions of some sequences, sorted by the tokens before them, the nearest first.

    8 bytes a token; made by doubling, four sorts; a search narrows a range token by token.
    """

    def __init__(self, sequences: Sequence[npt.NDArray[np.uint32]]) -> None:
        # A separator, -1, stands before every sequence and after the last one.
        parts: list[npt.NDArray[np.int64]] = []
        for sequence in sequences:
            parts += [np.array([-1]), sequence.astype(np.int64)]
        text = np.concatenate([*parts, np.array([-1])])
        # order[i] is the last place of the i-th context: sorted by text[p], then text[p - 1], and so on.
        rank, n = text + 1, len(text)
        for step in (1, 2, 4, 8):
            key = rank * (int(rank.max()) + 2)
            key[step:] += rank[:-step] + 1
            order = np.argsort(key)
            rank = np.empty(n, np.int64)
            rank[order] = np.cumsum(np.diff(key[order], prepend=key[order[0]]) > 0)
        self._text = memoryview(text.astype(np.int32).data)
        self._order = memoryview(order.astype(np.int32).data)

    def __len__(self) -> int:
        return len(self._text)

    def find(self, tokens: Sequence[int], longest: int, enough: int) -> tuple[list[int], int]:
        """(places, length): where the longest suffix of `tokens` ended before, `enough` places at most.

        Empty and 0 where the last token never stood. Of more places than `enough` every so manieth is taken.
        """
        text, order = self._text, self._order
        low, high, length = 0, len(order), 0
        for token in reversed(tokens[-min(longest, LONGEST) :]):

            def key(place: int, back: int = length) -> int:
                return text[place - back] if place >= back else -1

            first = bisect_left(order, token, low, high, key=key)
            last = bisect_right(order, token, first, high, key=key)
            if first == last:
                break
            low, high, length = first, last, length + 1
        if not length:
            return [], 0
        stride = -(-(high - low) // enough)
        return list(order[low:high:stride]), length

    def after(self, place: int) -> int | None:
        """The token at the next place, None at the end of a sequence."""
        token = self._text[place + 1]
        return None if token < 0 else token
