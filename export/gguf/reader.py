"""A GGUF file as it lies on the disk: its metadata, and where its tensors stand. Nothing in it is trusted.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Sizes that the file claims are held against
its own before anything is allocated; numbers stay in the file until they are asked for.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from paceline.export.errors import ExportError
from paceline.export.gguf.parts import is_first, part_names
from paceline.runtime.bundle.place import leads_out

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_FEWEST = {"keys": 13, "tensors": 32}
"""Bytes of the file that one of them takes at least."""
_STRINGS = 2**22
"""Strings of one array at most: sixteen times the largest vocabulary in use."""
_RANK = 4
_CARRIED = frozenset("F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K".split())

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor: its shape with the rows first, its type by name, and its bytes uint8[rows, bytes of a row]."""

    name: str
    shape: tuple[int, ...]
    kind: str
    data: Bytes

    def values(self, first: int = 0, last: int | None = None) -> Floats:
        """Rows `first` to `last` as gguf reads them, float32[rows, columns]."""
        kind = GGMLQuantizationType[self.kind]
        return np.asarray(dequantize(np.ascontiguousarray(self.data[first:last]), kind), np.float32)


@dataclass(frozen=True, slots=True)
class Gguf:
    """A file, or all parts of one that was split. metadata: numbers, strings, and arrays (of numbers: numpy's)."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Stored]


def read_gguf(path: Path) -> Gguf:
    """Read what a file says, and find the other parts of a split one beside it.

    Raises ExportError, whose message is one line.
    """
    paths = _parts(path)
    first = _read(paths[0])
    count = first.metadata.get("split.count", 1)
    if count not in (0, len(paths)):
        raise ExportError(
            f"{paths[0]} is one of {count} parts, and its name does not say so: give the parts the names that they "
            f"came with (NAME-00001-of-{count:05}.gguf)"
        )
    tensors = dict(first.tensors)
    for number, other in enumerate(paths[1:], 1):
        part = _read(other)
        if part.metadata.get("split.no") != number or part.metadata.get("split.count") != count:
            raise ExportError(f"{other} is not part {number + 1} of {count}: fetch it again")
        if twice := sorted(tensors.keys() & part.tensors):
            raise ExportError(f"{other}: {twice[0]} stands in another part already: fetch the parts again")
        tensors |= part.tensors
    said = first.metadata.get("split.tensors.count", len(tensors))
    if len(paths) > 1 and said != len(tensors):
        raise ExportError(f"{path}: {len(tensors)} tensors in all parts in place of {said}: fetch them again")
    return Gguf(path, first.metadata, tensors)


def first_parts(folder: Path) -> list[Path]:
    """The GGUF models of a folder: files, and the first parts of split ones."""
    return [path for path in sorted(folder.glob("*.gguf")) if is_first(path.name)]


def _parts(path: Path) -> list[Path]:
    root = path.parent.resolve()
    found = []
    for name in part_names(path.name):
        other = path.with_name(name)
        if not other.is_file():
            raise ExportError(f"{path} is a part of a split file, and {name} is not beside it: fetch it too")
        if name != path.name and leads_out(other, root):
            raise ExportError(f"{other} is a link to a place outside the folder: replace it by a copy")
        found.append(other)
    return found or [path]


def _read(path: Path) -> Gguf:
    try:
        if path.stat().st_size < 24:
            raise ExportError(f"{path} is too short for a GGUF file: fetch it again")
        return _Reader(path).read()
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror}): check its permissions") from None


class _Reader:
    """Walks through the head of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes: Bytes = np.memmap(path, np.uint8, "r")
        self._at = 0

    def read(self) -> Gguf:
        if bytes(self._take(4)) != _MAGIC:
            raise ExportError(f"{self._path} is no GGUF file: fetch it again")
        (version,) = self._unpack("<I")
        if version not in _VERSIONS:
            if int(version).to_bytes(4, "little") in [v.to_bytes(4, "big") for v in _VERSIONS]:
                raise ExportError(
                    f"{self._path} is big-endian: turn it around first (gguf_convert_endian of the package gguf)"
                )
            raise ExportError(
                f"{self._path} is GGUF version {version}, and versions 2 and 3 are read: convert the model again"
            )
        tensors, keys = self._unpack("<QQ")
        self._bound(keys, _FEWEST["keys"], "keys")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            name = self._string()
            if name in metadata:
                raise self._wrong(f"says {name[:80]!r} twice")
            (kind,) = self._unpack("<I")
            metadata[name] = self._value(kind, name)
        self._bound(tensors, _FEWEST["tensors"], "tensors")
        heads = [self._tensor_head() for _ in range(tensors)]
        step = metadata.get("general.alignment", 32)
        if not isinstance(step, int) or step < 8 or step % 8 or step > 2**20:
            raise self._wrong(f"aligns its tensors to {step!r}")
        start = -(-self._at // step) * step
        found: dict[str, Stored] = {}
        for head in heads:
            if head[0] in found:
                raise self._wrong(f"has {head[0][:80]!r} twice")
            found[head[0]] = self._tensor(start, step, *head)
        self._check_apart({name: (offset, found[name].data.nbytes) for name, _, _, offset in heads})
        return Gguf(self._path, metadata, found)

    def _check_apart(self, places: dict[str, tuple[int, int]]) -> None:
        """A byte is of one tensor: else a small file could claim any number of values."""
        end, before = 0, ""
        for name, (offset, size) in sorted(places.items(), key=lambda item: item[1]):
            if offset < end:
                raise self._wrong(f"has tensors that overlap, {before[:80]!r} and {name[:80]!r}")
            end, before = offset + size, name

    def _wrong(self, what: str) -> ExportError:
        return ExportError(f"{self._path} {what}: fetch it again")

    def _take(self, count: int) -> Bytes:
        if count > len(self._bytes) - self._at:
            raise self._wrong("ends in the middle of its head")
        self._at += count
        return self._bytes[self._at - count : self._at]

    def _unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._take(struct.calcsize(form)).tobytes())

    def _bound(self, count: int, bytes_each: int, what: str) -> None:
        if count * bytes_each > len(self._bytes) - self._at:
            raise self._wrong(f"claims {count} {what}, more than it has room for")

    def _string(self) -> str:
        (length,) = self._unpack("<Q")
        try:
            return bytes(self._take(length)).decode()
        except UnicodeDecodeError:
            raise self._wrong("has a text that is not UTF-8") from None

    def _value(self, kind: int, name: str) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(name)
        if kind not in _NUMBERS:
            raise self._wrong(f"gives {name[:80]!r} the unknown type {kind}")
        value = np.frombuffer(self._take(np.dtype(_NUMBERS[kind]).itemsize), _NUMBERS[kind])[0].item()
        return bool(value) if kind == _BOOL else value

    def _array(self, name: str) -> Any:
        kind, count = self._unpack("<IQ")
        if kind in _NUMBERS:
            width = np.dtype(_NUMBERS[kind]).itemsize
            self._bound(count, width, f"numbers of {name[:80]!r}")
            return np.frombuffer(self._take(count * width), _NUMBERS[kind])
        if kind != _STRING:
            raise self._wrong(f"gives the items of {name[:80]!r} the type {kind}")
        self._bound(count, 8, f"texts of {name[:80]!r}")
        if count > _STRINGS:
            raise self._wrong(f"has {count} texts in {name[:80]!r}")
        return [self._string() for _ in range(count)]

    def _tensor_head(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (rank,) = self._unpack("<I")
        if rank > _RANK:
            raise self._wrong(f"gives {name[:80]!r} {rank} dimensions")
        shape = self._unpack(f"<{rank}Q")
        kind, offset = self._unpack("<IQ")
        return name, tuple(int(size) for size in reversed(shape)), kind, offset

    def _tensor(
        self, start: int, step: int, name: str, shape: tuple[int, ...], kind: int, offset: int
    ) -> Stored:
        known = next((k for k in GGMLQuantizationType if k.value == kind), None)
        if known is None or known.name not in _CARRIED:
            raise ExportError(
                f"{self._path}: {name[:80]} is stored as {known.name if known else f'type {kind}'}, which is not "
                "carried: take a file in Q4_K_M, Q6_K, Q8_0 or F16 of the same model"
            )
        block, block_bytes = GGML_QUANT_SIZES[known]
        columns = shape[-1] if shape else 1
        count = math.prod(shape)
        if not count or columns % block:
            raise self._wrong(f"gives {name[:80]!r} the shape {list(shape)}, which {known.name} cannot have")
        row_bytes = columns // block * block_bytes
        size = count // columns * row_bytes
        if offset % step or start + offset + size > len(self._bytes):
            raise self._wrong(
                f"is cut off, or damaged: {name[:80]!r} ends at byte {start + offset + size} of {len(self._bytes)}"
            )
        data = self._bytes[start + offset : start + offset + size].reshape(-1, row_bytes)
        return Stored(name, shape, known.name, data)
