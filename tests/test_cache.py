from __future__ import annotations

import numpy as np
import pytest

from paceline.memory.cache import KeyValueCache


def rows(count: int, start: int = 0) -> np.ndarray:
    """New rows of 2 layers, 3 heads, width 4, whose values name the row."""
    return np.broadcast_to(
        np.arange(start, start + count, dtype=np.float32)[:, None], (4, 3, count, 4)
    ).copy()


def held(cache: KeyValueCache, count: int) -> list[float]:
    assert (cache.stack[:, :, :count] == cache.stack[:1, :1, :count, :1]).all()
    return cache.stack[0, 0, :count, 0].tolist()


def test_only_the_accepted_rows_enter_the_cache_in_path_order() -> None:
    cache = KeyValueCache(2, 3, 16, 4)
    cache.write(0, rows(3), slice(None))
    cache.write(3, rows(6, 10), (0, 2, 5))
    assert held(cache, 7) == [0, 1, 2, 10, 12, 15, 0]


def test_accepted_rows_of_a_draft_tree_close_up() -> None:
    cache = KeyValueCache(2, 3, 16, 4)
    cache.write(0, rows(8), slice(None))
    cache.gather(4, [4, 6, 7])
    assert held(cache, 7) == [0, 1, 2, 3, 4, 6, 7]


def test_a_row_beyond_the_capacity_is_an_error_not_a_wrap() -> None:
    cache = KeyValueCache(2, 3, 4, 4)
    with pytest.raises(ValueError, match="capacity"):
        cache.write(3, rows(2), slice(None))


def test_a_long_context_costs_memory_only_where_it_was_written() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * 4096

    before = resident()
    cache = KeyValueCache(24, 8, 32768, 64)
    assert cache.stack.nbytes >= 3 << 30
    cache.write(0, np.ones((48, 8, 4, 64), np.float32), slice(None))
    assert resident() - before < 64 << 20
