"""Work on rows as wide as a vocabulary, done by the native library; numpy does the same where there is none."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
from numpy.typing import NDArray

from paceline.runtime.ops import library

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_FUNCTIONS = {
    "paceline_top_k": (ctypes.c_int, [_POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _POINTER]),
    "paceline_kth_largest": (ctypes.c_int, [_POINTER, _SIZE, _SIZE, _POINTER]),
    "paceline_exp_sum": (ctypes.c_double, [_POINTER, _SIZE, ctypes.c_float, ctypes.c_float]),
    "paceline_noise_above": (_SIZE, [ctypes.c_uint64, _SIZE, ctypes.c_uint64, _POINTER]),
}


class Vocabulary:
    """The functions of `native/vocabulary.cpp`. Arrays must be contiguous; any values are fine, NaN too."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        self._top_k, self._kth, self._exp_sum, self._noise = (getattr(handle, name) for name in _FUNCTIONS)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(handle, name)
            function.restype, function.argtypes = result, arguments

    def top_k(self, rows: Floats, k: int) -> tuple[Ids, Floats]:
        """What `paceline.runtime.rows.top_k` gives for rows float32[n, V], 1 <= k <= V."""
        count, size = rows.shape
        ids, values = np.empty((count, k), np.int64), np.empty((count, k), np.float32)
        if self._top_k(_at(rows), count, size, k, ids.ctypes.data, values.ctypes.data):
            raise MemoryError(f"no memory for the top {k} of {size}")
        return ids, values

    def kth_largest(self, row: Floats, k: int) -> np.float32:
        """The k-th largest of float32[V], 1 <= k <= V, NaN as -inf."""
        value = np.empty(1, np.float32)
        if self._kth(_at(row), len(row), k, value.ctypes.data):
            raise MemoryError(f"no memory for the top {k} of {len(row)}")
        found: np.float32 = value[0]
        return found

    def exp_sum(self, row: Floats, top: float, scale: float) -> float:
        """Sum of `exp((row - top) * scale)` over float32[V] whose largest entry is `top`, to about six digits."""
        return float(self._exp_sum(_at(row), len(row), top, scale))

    def noise_above(self, key: int, size: int, floor: int) -> Ids:
        """Ascending ids below `size` whose noise of this key (runtime/rules/noise.py) has digits of `floor` or more."""
        ids = np.empty(size, np.int64)
        return ids[: self._noise(key, size, floor, ids.ctypes.data)]


@cache
def native() -> Vocabulary | None:
    """The native form, where it is faster than numpy: nowhere in portable C++."""
    handle = library.handle()
    return None if handle is None or library.level() == "portable" else Vocabulary(handle)


def _at(array: Floats) -> int:
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        raise ValueError(f"the native library reads contiguous float32 rows, not {array.dtype}")
    return array.ctypes.data
