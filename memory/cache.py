"""The key-value cache of one model: fixed buffers that are touched only as far as they are used."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class KeyValueCache:
    """Keys and values of every layer, float32 `[2 * layers, kv_heads, capacity, head_dim]`.

    Layer i's keys are `stack[i]`, its values `stack[layers + i]`. The memory is reserved at once and becomes
    resident page by page as rows are written, so a long context costs nothing before it is used.
    """

    def __init__(self, layers: int, kv_heads: int, capacity: int, head_dim: int) -> None:
        self.layers, self.capacity = layers, capacity
        self.stack = _untouched((2 * layers, kv_heads, capacity, head_dim))

    def write(self, at: int, new: Floats, rows: Sequence[int] | slice) -> None:
        """Copy the chosen rows of `new` [2 * layers, kv_heads, T, head_dim] to the cache, from row `at` on."""
        if isinstance(rows, slice):
            chosen = new[:, :, rows]
        elif len(rows) == 1:
            chosen = new[:, :, rows[0] : rows[0] + 1]
        else:
            chosen = new[:, :, list(rows)]
        end = at + chosen.shape[2]
        if end > self.capacity:
            raise ValueError(f"cache row {end} is beyond the capacity of {self.capacity}")
        self.stack[:, :, at:end] = chosen

    def gather(self, at: int, rows: Sequence[int]) -> None:
        """Move cache rows (ascending, all >= at) to `at`, `at + 1`, ...: what is left of a draft tree."""
        if list(rows) != list(range(at, at + len(rows))):
            self.stack[:, :, at : at + len(rows)] = self.stack[:, :, list(rows)]

    @staticmethod
    def row_bytes(layers: int, kv_heads: int, head_dim: int) -> int:
        """Bytes of one token's keys and values."""
        return 2 * layers * kv_heads * head_dim * 4


def _untouched(shape: tuple[int, ...]) -> Floats:
    """Zeros that take no memory until written. numpy's own would ask for huge pages: 2 MiB for every row touched."""
    size = math.prod(shape)
    return np.frombuffer(mmap.mmap(-1, max(1, size * 4)), np.float32, size).reshape(shape)
