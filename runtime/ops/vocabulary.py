"""Work on rows as wide as a vocabulary: the best few tokens and their weight, without sorting.

Done by the native library; numpy does the same where there is none, or where it is as fast.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.memory.cache import address
from paceline.runtime.ops import library

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

_BLOCK, _SMALL = 64, 256
_STRIDE = 32
_FEW = 256
"""Most entries whose last one the native library was measured to find faster."""
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_FUNCTIONS = {
    "paceline_top_k": (ctypes.c_int, [_POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _POINTER]),
    "paceline_kth_largest": (ctypes.c_int, [_POINTER, _SIZE, _SIZE, _POINTER]),
    "paceline_best": (
        ctypes.c_int,
        [_POINTER, _SIZE, _SIZE, _SIZE, ctypes.c_float, _POINTER, _POINTER, _POINTER],
    ),
    "paceline_exp_sum": (ctypes.c_double, [_POINTER, _SIZE, ctypes.c_float, ctypes.c_float]),
    "paceline_noise_above": (_SIZE, [ctypes.c_uint64, _SIZE, ctypes.c_uint64, _POINTER]),
}


class Vocabulary:
    """The functions of `native/vocabulary.cpp`. Arrays must be contiguous; any values are fine, NaN too."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        self._top_k, self._kth, self._best, self._exp_sum, self._noise = (
            getattr(handle, name) for name in _FUNCTIONS
        )
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(handle, name)
            function.restype, function.argtypes = result, arguments

    def top_k(self, rows: Floats, k: int) -> tuple[Ids, Floats]:
        """What `top_k` gives for rows float32[n, V], 1 <= k <= V."""
        count, size = rows.shape
        ids, values = np.empty((count, k), np.int64), np.empty((count, k), np.float32)
        if self._top_k(_at(rows), count, size, k, address(ids), address(values)):
            raise MemoryError(f"no memory for the top {k} of {size}")
        return ids, values

    def best_of(self, rows: Floats, k: int, scale: float) -> tuple[Ids, Floats, list[float]]:
        """What `best_of` gives for rows float32[n, V], 1 <= k <= V, n >= 1."""
        count, size = rows.shape
        ids, values, sums = np.empty((count, k), np.int64), np.empty((count, k), np.float32), np.empty(count)
        at = _at(rows)
        if self._best(at, count, size, k, scale, address(ids), address(values), address(sums)):
            raise MemoryError(f"no memory for the top {k} of {size}")
        return ids, values, sums.tolist()

    def kth_largest(self, row: Floats, k: int) -> np.float32:
        """The k-th largest of float32[V], 1 <= k <= V, NaN as -inf."""
        value = np.empty(1, np.float32)
        if self._kth(_at(row), len(row), k, address(value)):
            raise MemoryError(f"no memory for the top {k} of {len(row)}")
        found: np.float32 = value[0]
        return found

    def exp_sum(self, row: Floats, top: float, scale: float) -> float:
        """Sum of `exp((row - top) * scale)` over float32[V] whose largest entry is `top`, to about six digits."""
        return float(self._exp_sum(_at(row), len(row), top, scale))

    def noise_above(self, key: int, size: int, floor: int) -> Ids:
        """Ascending ids below `size` whose noise of this key (runtime/rules/noise.py) has digits of `floor` or more."""
        ids = np.empty(size, np.int64)
        return ids[: self._noise(key, size, floor, address(ids))]


@cache
def native() -> Vocabulary | None:
    """The native form, where it is faster than numpy: nowhere in portable C++, and not in a library of another age."""
    handle = library.handle()
    if (
        handle is None
        or library.level() == "portable"
        or not all(hasattr(handle, name) for name in _FUNCTIONS)
    ):
        return None
    return Vocabulary(handle)


def _at(array: Floats) -> int:
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        raise ValueError(f"the native library reads contiguous float32 rows, not {array.dtype}")
    return address(array)


def kth_largest(row: NDArray[Any], k: int) -> Any:
    """The k-th largest value of a row without NaN, 1 <= k <= len(row); the native library gives the same.

    Only values at or above the k-th largest maximum of strided blocks can be among the k largest: one pass
    finds that bound, and what is left to partition is hardly more than k values.
    """
    n = len(row)
    blocks = n // _STRIDE
    if k <= _FEW and row.dtype == np.float32 and row.flags.c_contiguous and (library := native()) is not None:
        return library.kth_largest(row, k)
    if blocks >= 4 * k:
        tops = row[: blocks * _STRIDE].reshape(_STRIDE, blocks).max(axis=0)
        row = row[row >= np.partition(tops, blocks - k)[blocks - k]]
        n = len(row)
    return np.partition(row, n - k)[n - k]


def top_k(rows: NDArray[Any], k: int) -> tuple[Ids, Floats]:
    """The k largest entries of each row, exactly: (ids int64[n, k], values float32[n, k]), descending.

    rows: float32[n, V], or [V] for one row. Ties go to the lowest id, NaN counts as -inf. ValueError
    unless 1 <= k <= V.

    The native library gives the same ids and values.
    """
    x = np.ascontiguousarray(rows, np.float32)
    x = x[None] if x.ndim == 1 else x
    n, vocab = x.shape
    if not 1 <= k <= vocab:
        raise ValueError(f"the top {k} of a vocabulary of {vocab} do not exist; ask for 1 to {vocab}")
    if n == 0:
        return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
    library = native()
    return _top_k(x, k) if library is None else library.top_k(x, k)


def exp_sum(row: NDArray[Any], top: float, scale: float) -> float:
    """Sum of `exp((row - top) * scale)` over float32[V] whose largest entry is `top`; NaN if an entry is NaN.

    In float32, to about six digits; the native library may differ in the seventh.
    """
    library = native()
    if library is not None:
        return library.exp_sum(np.ascontiguousarray(row, np.float32), top, scale)
    return float(np.exp((row - np.float32(top)) * np.float32(scale)).sum())


def best_of(rows: NDArray[Any], k: int, scale: float) -> tuple[Ids, Floats, list[float]]:
    """What `top_k` gives, and each row's weight: its `exp_sum` with its largest entry. One look at rows float32[n, V].

    A weight is NaN where an entry is NaN or the largest one is infinite.
    """
    x, library = np.ascontiguousarray(rows, np.float32), native()
    if library is not None and len(x) and 1 <= k <= x.shape[1]:
        return library.best_of(x, k, scale)
    ids, values = top_k(x, k)
    with np.errstate(invalid="ignore"):
        return ids, values, [exp_sum(row, top[0], scale) for row, top in zip(x, values, strict=True)]


def _top_k(x: Floats, k: int) -> tuple[Ids, Floats]:
    """`top_k` in numpy.

    One pass over the data takes the maximum of every block of about 64 entries. The k-th largest block
    maximum is a floor under the k-th largest entry, so only blocks that reach it are read again:
    O(V + k * 64) a row.
    Rows in which very many entries tie cost one partition each.
    """
    n, vocab = x.shape
    block = 1 if vocab <= _SMALL else min(_BLOCK, vocab // max(4 * k, 64))
    if block <= 1:
        return _sorted(np.where(np.isnan(x), np.float32(-np.inf), x), k)
    # Block j holds the entries j, j + width, j + 2 * width, ...: maxima over a stride run at memory speed.
    width = vocab // block
    blocks = x[:, : width * block].reshape(n, block, width)
    best = blocks.max(axis=1)
    if np.isnan(best).any() or np.isnan(x[:, width * block :]).any():
        return _top_k(np.where(np.isnan(x), np.float32(-np.inf), x), k)
    floor = np.partition(best, width - k, axis=1)[:, width - k]
    at = np.flatnonzero(best >= floor[:, None])
    if len(at) > 8 * n * k:
        return _partitioned(x, k)
    row, column = np.divmod(at, width)
    values = blocks[row, :, column]
    hit, depth = np.nonzero(values >= floor[row, None])
    owner, ids, found = row[hit], column[hit] + depth * width, values[hit, depth]
    if width * block < vocab:
        tail = x[:, width * block :]
        extra, offset = np.nonzero(tail >= floor[:, None])
        owner = np.concatenate((owner, extra))
        ids = np.concatenate((ids, offset + width * block))
        found = np.concatenate((found, tail[extra, offset]))
    order = np.lexsort((ids, -found, owner))
    first = np.searchsorted(owner[order], np.arange(n))
    chosen = order[first[:, None] + np.arange(k)]
    return ids[chosen], found[chosen]


def _sorted(x: Floats, k: int) -> tuple[Ids, Floats]:
    """By a stable sort: the way for small vocabularies."""
    ids = np.argsort(-x, axis=1, kind="stable")[:, :k].astype(np.int64)
    return ids, np.take_along_axis(x, ids, axis=1)


def _partitioned(x: Floats, k: int) -> tuple[Ids, Floats]:
    """By the exact k-th value of each row: the way for rows full of ties."""
    ids = np.empty((len(x), k), np.int64)
    for at, row in enumerate(x):
        last = np.partition(row, len(row) - k)[len(row) - k]
        above = np.flatnonzero(row > last)
        ids[at, : len(above)] = above[np.argsort(-row[above], kind="stable")]
        ids[at, len(above) :] = np.flatnonzero(row == last)[: k - len(above)]
    return ids, np.take_along_axis(x, ids, axis=1)
