"""The key-value cache of one model: fixed buffers that are touched only as far as they are used."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

CacheFormat = Literal["fp32", "fp16", "int8"]
"""fp16 rounds to half precision; int8 keeps codes and one float32 scale per row, head and layer."""
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

Halves = Callable[[int, int, int, int, int, int], object]
"""Rounds the first numbers of some planes to half precision: where they lie, how many planes, numbers from one to the
next, how many to round, and where to, with as many from one plane to the next."""

_KINDS: dict[CacheFormat, type[Any]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
_PAGE = 4096
_LARGE = 2**20
_NOTHING = np.float32(1e-30)
"""Rows without a larger number are all zero, as in the kernels."""


class RowCache(Protocol):
    """Where a model keeps the keys and values of its rows: in this process, or on the device that runs its graph."""

    capacity: int
    form: CacheFormat

    @property
    def bytes(self) -> int:
        """Bytes that are reserved."""

    def inputs(self) -> Mapping[str, Any]:
        """What the graph's cache inputs are bound to for good: numpy arrays, or values of ONNX Runtime on a device."""

    def write(self, at: int, new: Any, rows: Sequence[int] | slice) -> None:
        """Round the chosen rows of `new` [2 * layers, kv_heads, T, head_dim] into the cache, from row `at` on.

        new: an array float32, or what the passes of a graph on the cache's device give, which has a shape too.
        """

    def gather(self, at: int, rows: Sequence[int]) -> None:
        """Move cache rows (ascending, all >= at) to `at`, `at + 1`, ...: what is left of a draft tree."""

    def touch(self) -> None:
        """Make all of it resident now; what the cache holds stays."""

    def release(self) -> None:
        """Give the memory back; every row is lost."""


class KeyValueCache:
    """Keys and values of every layer, `[2 * layers, kv_heads, capacity, head_dim]` of the type of its `form`.

    Layer i's keys are `stack[i]`, its values `stack[layers + i]`; `scales` float32 `[2 * layers, kv_heads, capacity]`
    is there for int8 alone. The memory is reserved at once and becomes resident page by page as rows are written, so
    a long context costs nothing before it is used; `touch` makes it resident at once, `release` gives it back.
    halves: rounds to fp16 in place of numpy, which does it a number at a time.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        form: CacheFormat = "fp32",
        halves: Halves | None = None,
    ) -> None:
        self.layers, self.capacity, self.form = layers, capacity, form
        shape = (2 * layers, kv_heads, capacity, head_dim)
        self._maps: list[mmap.mmap] = []
        self.stack: npt.NDArray[Any] = self._untouched(shape, _KINDS[form])
        self._halves = halves if form == "fp16" else None
        self._planes, self._at = 2 * layers * kv_heads, address(self.stack)
        self.scales: Floats | None = self._untouched(shape[:3], np.float32) if form == "int8" else None

    @property
    def bytes(self) -> int:
        """Bytes that are reserved."""
        return self.stack.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """Keys, values and, for int8, their scales by the names of the graph contract."""
        named: dict[str, npt.NDArray[Any]] = {}
        for kind, first in (("k", 0), ("v", self.layers)):
            for i in range(self.layers):
                named[f"cache_{kind}.{i}"] = self.stack[first + i]
                if self.scales is not None:
                    named[f"{kind}_scales.{i}"] = self.scales[first + i]
        return named

    def read(self) -> Floats:
        """All rows in float32, [2 * layers, kv_heads, capacity, head_dim]; of one in float32 a view. Not for int8."""
        return self.stack.astype(np.float32, copy=False)

    def write(self, at: int, new: Floats, rows: Sequence[int] | slice) -> None:
        """Round the chosen rows of `new` [2 * layers, kv_heads, T, head_dim] into the cache, from row `at` on."""
        if not self.layers:
            return
        if not isinstance(rows, slice):
            if len(rows) == 1:
                rows = slice(rows[0], rows[0] + 1)
            else:
                new, rows = new.take(list(rows), 2), slice(None)
        chosen = new[:, :, rows]
        end = at + chosen.shape[2]
        if end > self.capacity:
            raise ValueError(f"cache row {end} is beyond the capacity of {self.capacity}")
        if self.scales is not None:
            # Rounding holds copies of what it rounds: a prompt chunk goes plane by plane.
            planes = range(len(chosen)) if chosen.nbytes > _LARGE else (slice(None),)
            for plane in planes:
                self.stack[plane, :, at:end], self.scales[plane, :, at:end] = as_codes(chosen[plane])
        elif self._halves is not None and new.dtype == np.float32 and new.flags.c_contiguous:
            size, numbers = new.shape[3], chosen.shape[2] * new.shape[3]
            read, to = address(new) + 4 * size * (rows.start or 0), self._at + 2 * size * at
            self._halves(read, self._planes, size * new.shape[2], numbers, to, size * self.capacity)
        elif self.form == "fp16":
            with np.errstate(over="ignore"):  # beyond 65504 it is infinity, as in the kernels
                self.stack[:, :, at:end] = chosen
        else:
            self.stack[:, :, at:end] = chosen

    def gather(self, at: int, rows: Sequence[int]) -> None:
        """Move cache rows (ascending, all >= at) to `at`, `at + 1`, ...: what is left of a draft tree."""
        if list(rows) == list(range(at, at + len(rows))):
            return
        for held in (self.stack, self.scales):
            if held is not None:
                held[:, :, at : at + len(rows)] = held[:, :, list(rows)]

    def touch(self) -> None:
        """Make every page resident now; what the cache holds stays."""
        for kept in self._maps:
            np.frombuffer(kept, np.uint8)[::_PAGE] |= np.uint8(0)

    def release(self) -> None:
        """Give the memory back to the system; every row is lost, and pages come again as they are written."""
        for kept in self._maps:
            if hasattr(mmap, "MADV_DONTNEED"):
                kept.madvise(mmap.MADV_DONTNEED)

    @staticmethod
    def row_bytes(layers: int, kv_heads: int, head_dim: int, form: CacheFormat = "fp32") -> int:
        """Bytes of one token's keys and values."""
        scale = 4 if form == "int8" else 0
        return 2 * layers * kv_heads * (head_dim * np.dtype(_KINDS[form]).itemsize + scale)

    def _untouched(self, shape: tuple[int, ...], kind: type[Any]) -> npt.NDArray[Any]:
        """Zeros that take no memory until written."""
        size = math.prod(shape)
        kept = _reserved(max(1, size * np.dtype(kind).itemsize))
        self._maps.append(kept)
        return np.frombuffer(kept, kind, size).reshape(shape)


def address(array: npt.NDArray[Any]) -> int:
    """Where a contiguous array lies, for native code; several times faster than asking numpy."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # read-only, or empty
        return int(array.ctypes.data)


def as_codes(rows: Floats) -> tuple[Codes, Floats]:
    """Codes -127 to 127 of the last axis, rounded half to even, and the scale that gives the numbers back.

    Bit for bit what the kernels do to a new row, so that a row is the same in the cache and beside it: every step
    below is one rounding in float32.
    """
    most = np.abs(rows).max(-1)
    largest = np.float32(127)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        codes = rows * (largest / most)[..., None]
        scales = most / largest
        np.rint(codes, codes)
        if (nothing := most < _NOTHING).any():
            codes[nothing], scales[nothing] = 0, 0
        return codes.astype(np.int8), scales


def _reserved(size: int) -> mmap.mmap:
    """Memory that is resident where it was written. Huge pages would take 2 MiB for every row touched."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    kept = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        kept.madvise(mmap.MADV_NOHUGEPAGE)
    return kept
