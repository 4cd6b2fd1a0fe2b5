"""The native library's work on rows of logits is that of numpy, at every instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.memory.cache import KeyValueCache
from paceline.runtime.ops import library, vocabulary
from paceline.runtime.ops.halves import halves
from paceline.runtime.ops.vocabulary import Vocabulary
from paceline.runtime.rules import noise

pytestmark = pytest.mark.skipif(library.handle() is None, reason="no native library was built")

WIDTHS = [1, 15, 16, 17, 255, 256, 257, 4096, 5001, 32003, 151936]


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """Tests change the instruction set of the whole process."""
    before = library.level()
    yield
    assert before is not None
    library.use(before)


def each_level() -> Iterator[Vocabulary]:
    handle = library.handle()
    assert handle is not None
    for name in library.levels():
        library.use(name)
        yield Vocabulary(handle)


def check(x: np.ndarray, k: int) -> None:
    wanted_ids, wanted_values = vocabulary._top_k(x, k)
    for native in each_level():
        ids, values = native.top_k(x, k)
        assert ids.dtype == np.int64
        assert (ids == wanted_ids).all()
        assert (values.view(np.int32) == wanted_values.view(np.int32)).all()
        assert [native.kth_largest(row, k) for row in x] == wanted_values[:, -1].tolist()
        again, also, weights = native.best_of(x, k, 0.5)
        assert (again == ids).all()
        assert (also.view(np.int32) == values.view(np.int32)).all()
        apart = [native.exp_sum(row, top, 0.5) for row, top in zip(x, values[:, 0], strict=True)]
        assert np.array_equal(weights, apart, equal_nan=True)


@pytest.mark.parametrize("vocab", WIDTHS)
def test_top_k_has_the_ids_and_the_bits_of_numpy(vocab: int) -> None:
    x = np.random.default_rng(vocab).normal(size=(3, vocab)).astype(np.float32)
    for k in (1, 2, 8, 40, 1024, vocab):
        if k <= min(vocab, 5001):
            check(x, k)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 5000), st.integers(1, 5))
def test_ties_zeros_of_both_signs_and_broken_entries_are_ordered_as_in_numpy(
    seed: int, k: int, vocab: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-levels, levels, (2, vocab)).astype(np.float32) * rng.choice(
        [0.0, -1.0, 1.0], (2, vocab)
    )
    x[0, rng.random(vocab) < 0.3] = -np.inf
    x[1, rng.random(vocab) < 0.3] = np.nan
    check(x.astype(np.float32), min(k, vocab))


@pytest.mark.parametrize("value", [0.0, -np.inf, np.nan, np.inf])
def test_rows_of_one_value_give_the_lowest_ids(value: float) -> None:
    check(np.full((2, 40000), value, np.float32), 9)


@pytest.mark.parametrize("vocab", WIDTHS)
def test_the_kth_largest_is_that_of_numpy(vocab: int) -> None:
    row = np.random.default_rng(vocab).normal(size=vocab)
    for k in (1, 40, 256, 1024):
        if k <= vocab:
            wanted = np.float32(vocabulary.kth_largest(row, k))  # float64 rows are numpy's
            assert {v.kth_largest(row.astype(np.float32), k) for v in each_level()} == {wanted}


@pytest.mark.parametrize("vocab", WIDTHS)
def test_the_weight_of_a_row_has_the_same_bits_everywhere_and_is_right(vocab: int) -> None:
    row = np.random.default_rng(vocab).normal(size=vocab).astype(np.float32) * 4
    row[: vocab // 5] = -np.inf
    top = float(row.max())
    exact = np.exp((row.astype(np.float64) - top) * 1.5).sum()
    found = {native.exp_sum(row, top, 1.5) for native in each_level()}
    assert len(found) == 1
    assert found.pop() == pytest.approx(exact, rel=2e-6)
    row[vocab // 2] = np.nan
    assert all(np.isnan(native.exp_sum(row, top, 1.5)) for native in each_level())


@pytest.mark.parametrize("vocab", WIDTHS)
def test_noise_is_that_of_numpy(vocab: int) -> None:
    for key, share in ((0, 0.5), (2**64 - 1, 0.99), (0x123456789ABCDEF0, 0.0), (77, 1 - 1e-4)):
        floor = int(share * 2**52)
        wanted = np.flatnonzero(noise._hash(key, np.arange(vocab)) >= floor)
        for native in each_level():
            assert native.noise_above(key, vocab, floor).tolist() == wanted.tolist()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_with_and_without_the_library_the_same_token_wins(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = np.random.default_rng(5).normal(size=40000).astype(np.float32) * 3
    row[::7] = -np.inf
    made = noise.GumbelNoise(9, 0)
    with_library = [made.choose_in_row(position, row, temperature) for position in range(30)]
    for module in (noise, vocabulary):
        monkeypatch.setattr(module, "native", lambda: None)
    assert [made.choose_in_row(position, row, temperature) for position in range(30)] == with_library
    every = [made._perturbed(position, row, np.arange(40000), temperature).argmax() for position in range(30)]
    assert every == with_library


def test_rows_that_the_library_could_not_read_are_refused() -> None:
    native = next(each_level())
    for x in (np.zeros((2, 8)), np.zeros((8, 2), np.float32).T):
        with pytest.raises(ValueError, match="contiguous float32"):
            native.top_k(x, 1)


def test_a_library_of_another_age_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vocabulary._FUNCTIONS, "paceline_of_tomorrow", (None, []))
    vocabulary.native.cache_clear()
    assert vocabulary.native() is None
    vocabulary.native.cache_clear()


@pytest.mark.parametrize("rows", [slice(None), slice(3), (1,), (0, 2, 4)])
def test_rows_of_the_cache_are_rounded_to_the_bits_of_numpy(rows: slice | tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    new = (rng.normal(size=(4, 3, 5, 24)) * 10.0 ** rng.integers(-9, 6, (4, 3, 5, 24))).astype(np.float32)
    new[0, 0, :, :5] = [65519.0, 65520.0, -np.inf, 1 + 2**-11, -0.0]
    wanted = KeyValueCache(2, 3, 9, 24, "fp16")
    wanted.write(2, new, rows)
    assert np.isinf(wanted.stack).sum() > 10
    for _ in each_level():
        rounding = halves()
        assert rounding is not None
        cache = KeyValueCache(2, 3, 9, 24, "fp16", rounding)
        cache.write(2, new, rows)
        assert cache.stack.tobytes() == wanted.stack.tobytes()
