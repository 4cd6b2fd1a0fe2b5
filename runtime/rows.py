"""What a drafter reads from rows of logits: the best few tokens and the normaliser, without sorting."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]

_BLOCK = 64
_SMALL = 256


def top_k(rows: npt.NDArray[Any], k: int) -> tuple[Ids, Floats]:
    """The k largest entries of each row, exactly: (ids int64[n, k], values float32[n, k]), descending.

    rows: float32[n, V], or [V] for one row. Ties go to the lowest id, NaN counts as -inf. ValueError
    unless 1 <= k <= V.

    One pass over the data takes the maximum of every block of about 64 entries. The k-th largest block
    maximum is a floor under the k-th largest entry, so only blocks that reach it are read again:
    O(V + k * 64) a row.
    Rows in which very many entries tie cost one partition each.
    """
    x = np.ascontiguousarray(rows, np.float32)
    x = x[None] if x.ndim == 1 else x
    n, vocab = x.shape
    if not 1 <= k <= vocab:
        raise ValueError(f"the top {k} of a vocabulary of {vocab} do not exist; ask for 1 to {vocab}")
    if n == 0:
        return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
    block = 1 if vocab <= _SMALL else min(_BLOCK, vocab // max(4 * k, 64))
    if block <= 1:
        return _sorted(np.where(np.isnan(x), np.float32(-np.inf), x), k)
    # Block j holds the entries j, j + width, j + 2 * width, ...: maxima over a stride run at memory speed.
    width = vocab // block
    blocks = x[:, : width * block].reshape(n, block, width)
    best = blocks.max(axis=1)
    if np.isnan(best).any() or np.isnan(x[:, width * block :]).any():
        return top_k(np.where(np.isnan(x), np.float32(-np.inf), x), k)
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


def log_sum_exp(rows: npt.NDArray[Any]) -> Values:
    """log(sum(exp(row))) of each row: float64[n] for rows float32[n, V], float64[1] for one row [V].

    Sums float32 exponentials pairwise (about six digits). A row of -inf gives -inf. O(V), no sort.
    """
    x = np.asarray(rows, np.float32)
    x = x[None] if x.ndim == 1 else x
    top = x.max(axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, np.float32(0))
    with np.errstate(divide="ignore"):
        total: Values = np.log(np.exp(x - top).sum(axis=1).astype(np.float64)) + top[:, 0]
    return total


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
