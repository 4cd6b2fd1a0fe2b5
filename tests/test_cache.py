from __future__ import annotations

import numpy as np
import pytest

from paceline.memory.cache import CacheFormat, KeyValueCache, as_codes


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


def drawn(rows: int, seed: int = 0) -> np.ndarray:
    """New rows of 2 layers, 3 heads, width 24, of very different sizes."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(4, 3, rows, 24)) * 10.0 ** rng.integers(-6, 4, (4, 3, rows, 1))).astype(
        np.float32
    )


def test_half_precision_rounds_to_even_and_overflows_to_infinity() -> None:
    cache = KeyValueCache(2, 3, 8, 24, "fp16")
    new = drawn(3)
    new[0, 0, 0, :4] = [65519.0, 65520.0, -1e9, 1 + 2**-11]
    cache.write(2, new, slice(None))
    assert cache.stack.dtype == np.float16
    assert cache.stack[0, 0, 2, :4].tolist() == [65504.0, np.inf, -np.inf, 1.0]
    with np.errstate(over="ignore"):
        assert np.array_equal(cache.stack[:, :, 2:5], new.astype(np.float16))


def test_codes_have_one_scale_a_head_and_row_and_give_the_numbers_back() -> None:
    cache = KeyValueCache(2, 3, 8, 24, "int8")
    new = drawn(5)
    new[1, 2, 3] = 0
    cache.write(1, new, (0, 3, 4))
    assert cache.stack.dtype == np.int8
    assert cache.scales is not None
    assert cache.scales.shape == (4, 3, 8)
    kept = new[:, :, [0, 3, 4]]
    back = cache.stack[:, :, 1:4] * cache.scales[:, :, 1:4, None]
    most = np.abs(kept).max(axis=-1, keepdims=True)
    assert (np.abs(back - kept) <= most / 254 * 1.0001).all()
    assert (np.abs(cache.stack[:, :, 1:4]).max(axis=-1) == np.where(most[..., 0] > 0, 127, 0)).all()
    assert cache.scales[1, 2, 2] == 0
    assert not cache.stack[:, :, 0].any()


def test_a_row_is_rounded_alike_in_any_company() -> None:
    new = drawn(9)
    codes, scales = as_codes(new)
    for row in range(9):
        alone = as_codes(new[:, :, row : row + 1])
        assert np.array_equal(alone[0][:, :, 0], codes[:, :, row])
        assert np.array_equal(alone[1][:, :, 0], scales[:, :, row])


def test_numbers_too_small_to_scale_are_zero_and_none_warns() -> None:
    tiny = np.array([1e-30, 9e-31, 0, 3e38], np.float32)[None, None, :, None].repeat(24, -1).repeat(4, 0)
    codes, scales = as_codes(tiny)
    assert codes[0, 0, :, 0].tolist() == [127, 0, 0, 127]
    assert (scales[0, 0] > 0).tolist() == [True, False, False, True]
    as_codes(np.full((4, 3, 1, 24), np.inf, np.float32))
    as_codes(np.full((4, 3, 1, 24), np.nan, np.float32))


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8"])
def test_gathered_rows_take_their_scales_along(form: CacheFormat) -> None:
    cache, wanted = KeyValueCache(2, 3, 16, 24, form), KeyValueCache(2, 3, 16, 24, form)
    new = drawn(8)
    new[..., :] = np.clip(new, -1000, 1000)
    cache.write(0, new, slice(None))
    wanted.write(0, new, (0, 1, 2, 4, 7))
    cache.gather(3, [4, 7])
    assert np.array_equal(cache.stack[:, :, :5], wanted.stack[:, :, :5])
    if cache.scales is not None and wanted.scales is not None:
        assert np.array_equal(cache.scales[:, :, :5], wanted.scales[:, :, :5])


@pytest.mark.parametrize(("form", "each"), [("fp32", 4 * 24), ("fp16", 2 * 24), ("int8", 24 + 4)])
def test_a_cache_takes_as_many_bytes_as_its_rows(form: CacheFormat, each: int) -> None:
    assert KeyValueCache.row_bytes(2, 3, 24, form) == 4 * 3 * each
    assert KeyValueCache(2, 3, 50, 24, form).bytes == 50 * 4 * 3 * each


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8"])
def test_memory_comes_at_once_when_asked_for_and_goes_when_given_back(form: CacheFormat) -> None:
    cache = KeyValueCache(8, 4, 2000, 64, form)
    cache.write(5, np.ones((16, 4, 1, 64), np.float32), slice(None))
    held = cache.stack[:, :, 5].copy()
    before = resident()
    cache.touch()
    assert resident() - before > 0.9 * cache.bytes
    assert np.array_equal(cache.stack[:, :, 5], held)
    cache.release()
    assert resident() - before < 0.2 * cache.bytes
    assert not cache.stack.any()
    cache.write(5, np.ones((16, 4, 1, 64), np.float32), slice(None))
    assert np.array_equal(cache.stack[:, :, 5], held)


def resident() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_a_long_context_costs_memory_only_where_it_was_written() -> None:
    before = resident()
    cache = KeyValueCache(24, 8, 32768, 64)
    assert cache.stack.nbytes >= 3 << 30
    cache.write(0, np.ones((48, 8, 4, 64), np.float32), slice(None))
    assert resident() - before < 64 << 20
