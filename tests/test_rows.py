"""The best tokens of a row and its normaliser, against sorting and against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.runtime.rows import log_sum_exp, top_k


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


def test_log_sum_exp_is_the_logarithm_of_the_sum() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 3000)).astype(np.float32) * 20
    rows[1, :2000] = -np.inf
    exact = np.log(np.exp(rows.astype(np.float64)).sum(axis=1))
    assert np.allclose(log_sum_exp(rows), exact, atol=1e-5)
    assert log_sum_exp(np.full(5, -np.inf)).tolist() == [-np.inf]
    assert np.allclose(log_sum_exp(np.full((1, 2), 1e4)), 1e4 + np.log(2))
