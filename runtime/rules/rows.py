"""What a drafter reads from rows of logits: the best few tokens and their weight, without sorting."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.runtime.ops.vocabulary import native

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_BLOCK = 64
_SMALL = 256


def top_k(rows: npt.NDArray[Any], k: int) -> tuple[Ids, Floats]:
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


def exp_sum(row: npt.NDArray[Any], top: float, scale: float) -> float:
    """Sum of `exp((row - top) * scale)` over float32[V] whose largest entry is `top`; NaN if an entry is NaN.

    In float32, to about six digits; the native library may differ in the seventh.
    """
    library = native()
    if library is not None:
        return library.exp_sum(np.ascontiguousarray(row, np.float32), top, scale)
    return float(np.exp((row - np.float32(top)) * np.float32(scale)).sum())


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
