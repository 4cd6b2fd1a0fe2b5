"""Weights of a graph in one buffer of huge pages, shared by every session over the same file.

A step on the CPU reads every weight once, and pages of 2 MiB instead of 4 KiB make that faster. The pages of a mapped
file are as large only by luck: where a recent kernel and file system cached it in one go. See docs/bundle.md.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from paceline.runtime.manifest import DTYPE_BYTES, BundleError, Dtype, Weight
from paceline.runtime.model.ort import onnxruntime

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ONNX_BFLOAT16 = 16
_STRIDE = 1 << 26
_Range = tuple[int, int]
_Key = tuple[str, int, int, int, int, tuple[_Range, ...]]


class Weights:
    """Byte ranges of a file in anonymous memory, at the places they have in the file. Lives while it is used."""

    def __init__(self, path: Path, ranges: tuple[_Range, ...]) -> None:
        self._first = ranges[0][0] // mmap.PAGESIZE * mmap.PAGESIZE
        self._map = mmap.mmap(-1, ranges[-1][1] - self._first, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = sum(end - start for start, end in ranges)
        with memoryview(self._map) as view, path.open("rb", buffering=0) as file:
            for start, end in ranges:
                _fill(view[start - self._first : end - self._first], file, start, path)

    def values(self, listed: Mapping[str, Weight]) -> dict[str, Any]:
        """Every listed tensor as an OrtValue over its slice of the buffer.

        `SessionOptions.add_initializer` takes them without a copy and without a reference: keep them as long as
        the session.
        """
        ort, values = onnxruntime(), {}
        for name, weight in listed.items():
            kind = np.dtype(_NUMPY[weight.dtype])
            count = weight.bytes // kind.itemsize
            array = np.frombuffer(self._map, kind, count, weight.offset - self._first).reshape(weight.shape)
            if weight.dtype == "bfloat16":
                values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16)
            else:
                values[name] = ort.OrtValue.ortvalue_from_numpy(array)
        return values


_NUMPY: dict[Dtype, str] = {name: "uint16" if name == "bfloat16" else name for name in DTYPE_BYTES}
_loaded: WeakValueDictionary[_Key, Weights] = WeakValueDictionary()


def huge_pages() -> bool:
    """Whether this system gives huge pages to a process that asks for them."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    try:
        return "[never]" not in _SETTING.read_text()
    except OSError:
        return False


def load_weights(path: Path, listed: Mapping[str, Weight]) -> Weights | None:
    """Read the listed tensors of a file, or find the buffer of a session that has them already.

    None where the system gives no huge pages: ONNX Runtime's own mapping of the file is as good then.
    Raises BundleError for a file that cannot be read or ends too early.
    """
    if not listed or not huge_pages():
        return None
    ranges = _ranges(listed)
    try:
        stamp = path.stat()
        key = (str(path.resolve()), stamp.st_size, stamp.st_mtime_ns, stamp.st_ctime_ns, stamp.st_ino, ranges)
        found = _loaded.get(key)
        if found is None:
            found = _loaded[key] = Weights(path, ranges)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    return found


def _ranges(listed: Mapping[str, Weight]) -> tuple[_Range, ...]:
    """Bytes to read, ascending; tensors in one page or next to each other are one range."""
    merged: list[_Range] = []
    for weight in sorted(listed.values(), key=lambda w: w.offset):
        start, end = weight.offset, weight.offset + weight.bytes
        if merged and start - merged[-1][1] < mmap.PAGESIZE:
            start = merged.pop()[0]
        merged.append((start, end))
    return tuple(merged)


def _fill(view: memoryview, file: Any, at: int, path: Path) -> None:
    file.seek(at)
    while view.nbytes:
        count = file.readinto(view[:_STRIDE])
        if not count:
            raise BundleError(f"{path} ends too early: fetch or export the bundle again")
        view = view[count:]
