"""The best tokens of a row and its weight, against sorting and against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.runtime.ops import vocabulary
from paceline.runtime.ops.vocabulary import best_of, exp_sum, top_k


def by_sorting(rows: np.ndarray, k: int) -> np.ndarray:
    rows = np.where(np.isnan(rows), -np.inf, rows)
    return np.argsort(-rows, axis=1, kind="stable")[:, :k]


def check(rows: np.ndarray, k: int) -> None:
    ids, values = top_k(rows, k)
    assert ids.dtype == np.int64
    assert values.dtype == np.float32
    assert (ids == by_sorting(rows, k)).all()
    clean = np.where(np.isnan(rows), -np.inf, rows)
    assert (values == np.take_along_axis(clean, ids, axis=1)).all()


@pytest.mark.parametrize("vocab", [8, 100, 257, 511, 4096, 5001, 32003, 152064])
@pytest.mark.parametrize("k", [1, 8])
def test_top_k_equals_sorting(vocab: int, k: int) -> None:
    rng = np.random.default_rng(vocab)
    check(rng.normal(size=(3, vocab)).astype(np.float32), k)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 900), st.integers(1, 4))
def test_ties_go_to_the_lowest_id(seed: int, k: int, vocab: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    check(rng.integers(0, levels, (2, vocab)).astype(np.float32), min(k, vocab))


@pytest.mark.parametrize("vocab", [7, 4096, 5001])
def test_banned_and_broken_entries_come_last(vocab: int) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(5, vocab)).astype(np.float32)
    rows[0] = -np.inf
    rows[1, 3:] = -np.inf
    rows[2, ::2] = np.nan
    rows[3] = np.nan
    rows[4, -1] = np.inf
    check(rows, 5)


def test_a_single_row_and_no_row() -> None:
    ids, values = top_k(np.array([1.0, 3.0, 2.0]), 2)
    assert ids.tolist() == [[1, 2]]
    assert values.tolist() == [[3.0, 2.0]]
    assert top_k(np.zeros((0, 9), np.float32), 2)[0].shape == (0, 2)


@pytest.mark.parametrize("k", [0, 4])
def test_more_than_there_are_is_an_error(k: int) -> None:
    with pytest.raises(ValueError, match="vocabulary of 3"):
        top_k(np.zeros(3), k)


@pytest.mark.parametrize("vocab", [1, 17, 3000, 152064])
def test_the_weight_of_a_row_is_the_sum_of_exponentials(vocab: int) -> None:
    row = np.random.default_rng(0).normal(size=vocab).astype(np.float32) * 6
    row[1 : vocab // 3] = -np.inf
    top = float(row.max())
    exact = np.exp((row.astype(np.float64) - top) * 1.25).sum()
    assert exp_sum(row, top, 1.25) == pytest.approx(exact, rel=1e-5)
    row[-1] = np.nan
    assert np.isnan(exp_sum(row, top, 1.25))


@pytest.mark.parametrize("kernels", [True, False])
def test_the_best_of_rows_come_with_the_weight_of_each(
    kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        monkeypatch.setattr(vocabulary, "native", lambda: None)
    rows = np.random.default_rng(4).normal(size=(5, 777)).astype(np.float32)
    rows[3, 7], rows[4, 9] = np.nan, np.inf
    for k in (1, 8):
        ids, values, weights = best_of(rows, k, 1.5)
        wanted = top_k(rows, k)
        assert (ids == wanted[0]).all()
        assert (values == wanted[1]).all()
        exact = [np.exp((row.astype(np.float64) - row.max()) * 1.5).sum() for row in rows[:3]]
        assert weights[:3] == pytest.approx(exact, rel=1e-5)
        assert np.isnan(weights[3:]).all()
    with pytest.raises(ValueError, match="vocabulary of 777"):
        best_of(rows, 778, 1.5)
