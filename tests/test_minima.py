"""Rounding to 4 to 6 bits with minima, without torch."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")

from paceline.export.minima import quantise_with_minima
from paceline.export.pack import pack
from paceline.export.quantize import quantise


@pytest.mark.parametrize(("bits", "most"), [(4, 0.08), (5, 0.04), (6, 0.02)])
def test_the_error_is_small_and_what_the_codes_say(bits: int, most: float) -> None:
    weight = np.random.default_rng(0).standard_normal((96, 40)).astype(np.float32)
    found = quantise_with_minima(weight, bits, 32)
    dense = found.dense(0, 40).T
    off = float(np.linalg.norm(dense - weight) / np.linalg.norm(weight))
    assert found.error == pytest.approx(off, rel=1e-4)
    assert off < most
    assert found.codes.max() < 1 << bits
    assert np.array_equal(pack(found).dense(), dense)


def test_blocks_away_from_zero_lose_less_than_by_scales_alone() -> None:
    rng = np.random.default_rng(1)
    weight = (3 + rng.standard_normal((64, 16))).astype(np.float32)
    assert quantise_with_minima(weight, 4, 32).error < 0.5 * quantise(weight, 4, 32).error


def test_a_block_of_one_value_is_exact_and_the_last_block_may_be_partly_empty() -> None:
    weight = np.full((40, 3), 0.375, np.float32)
    weight[32:] = -1.5
    found = quantise_with_minima(weight, 4, 32)
    assert np.abs(found.dense(0, 3).T[:32] - weight[:32]).max() == 0
    assert np.abs(found.dense(0, 3).T[32:] - weight[32:]).max() < 0.1
    assert not found.codes[:, 40:].any()


def test_what_half_precision_cannot_hold_is_rounded_by_scales_alone() -> None:
    weight = np.full((32, 2), 1e5, np.float32)
    assert quantise_with_minima(weight, 4, 32).minima is None
    tiny = np.linspace(0, 1e-6, 64, dtype=np.float32).reshape(32, 2)
    assert quantise_with_minima(tiny, 4, 32).minima is None
