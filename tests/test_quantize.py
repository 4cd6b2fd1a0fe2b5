"""Block quantisation: what is packed is what ONNX Runtime multiplies by, and it is close to the weight."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

onnx_ir = pytest.importorskip("onnx_ir")
pytest.importorskip("torch")

from paceline.export import check, nbits, quantize
from paceline.export.check import check_matrix
from paceline.export.errors import ExportError
from paceline.export.pack import pack
from paceline.export.quantize import Quantised, quantise

pytestmark = pytest.mark.export


def gaussian(k: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(k, n)).astype(np.float32) * np.float32(0.02)


def plain_rounding(weight: np.ndarray, block: int) -> float:
    """Relative error of the usual scale, largest absolute value over 8 steps."""
    values = weight.T.reshape(-1, block)
    top = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)
    scale = top / -8
    codes = np.clip(np.rint(values / scale), -8, 7)
    return float(np.linalg.norm(codes * scale - values) / np.linalg.norm(values))


SHAPES = [(64, 32), (172, 33), (20, 7), (256, 700), (31, 1)]


@pytest.mark.parametrize(("k", "n"), SHAPES)
@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 128), (8, 128), (8, 32)])
def test_onnxruntime_multiplies_by_what_was_packed(k, n, bits, block):
    weight = gaussian(k, n)
    check_matrix("w", weight, quantise(weight, bits, block))


@pytest.mark.parametrize(("k", "n"), SHAPES)
@pytest.mark.parametrize(("bits", "block"), [(4, 32), (8, 128), (8, 256)])
def test_the_packed_operator_multiplies_by_what_was_packed(k, n, bits, block):
    weight = gaussian(k, n)
    quantised = quantise(weight, bits, block)
    check_matrix("w", weight, quantised, pack(quantised))


@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 32), (5, 32), (5, 64), (6, 16), (6, 128), (8, 64)])
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_every_format_multiplies_by_what_was_packed(k, n, bits, block, minimum):
    if minimum and bits == 8:
        pytest.skip("8 bits have no minima")
    rng = np.random.default_rng(k)
    blocks = -(-k // block)
    codes = np.full((n, blocks * block), 0 if minimum else 1 << (bits - 1), np.uint8)
    codes[:, :k] = rng.integers(0, 1 << bits, (n, k))
    scales = rng.uniform(0.01, 0.02, (n, blocks)).astype(np.float16)
    minima = (-scales * rng.uniform(0.3, 0.7, scales.shape) * (1 << bits)).astype(np.float16)
    quantised = Quantised(codes, scales, minima if minimum else None, bits, block, k, 0.0)
    check_matrix("w", quantised.dense(0, n).T, quantised, pack(quantised))


@pytest.mark.parametrize("block", [32, 128])
def test_the_scale_search_beats_plain_rounding(block):
    weight = gaussian(512, 256)
    assert quantise(weight, 4, block).error < 0.96 * plain_rounding(weight, block)


def test_int4_keeps_a_gaussian_matrix_within_nine_percent_and_int8_within_one():
    weight = gaussian(512, 256)
    assert quantise(weight, 4, 32).error < 0.09
    assert quantise(weight, 8, 128).error < 0.01


def test_the_reported_error_is_the_error_of_the_dense_form():
    weight = gaussian(100, 50)
    quantised = quantise(weight, 4, 32)
    dense = quantised.dense(0, 50)
    assert np.linalg.norm(dense.T - weight) / np.linalg.norm(weight) == pytest.approx(
        quantised.error, rel=1e-4
    )


def test_codes_use_the_full_range_with_scales_of_either_sign():
    quantised = quantise(gaussian(512, 64), 4, 32)
    assert set(np.unique(quantised.codes)) == set(range(16))
    assert (quantised.scales < 0).any()
    assert (quantised.scales > 0).any()


def test_a_transposed_view_gives_the_same_codes():
    weight = gaussian(96, 40)
    view = np.ascontiguousarray(weight.T).T
    assert np.array_equal(quantise(weight, 4, 32).codes, quantise(view, 4, 32).codes)


def test_cutting_into_chunks_changes_nothing(monkeypatch):
    weight = gaussian(96, 40)
    whole = quantise(weight, 4, 32)
    monkeypatch.setattr(quantize, "_CHUNK", 200)
    assert np.array_equal(quantise(weight, 4, 32).codes, whole.codes)


def test_zero_columns_stay_zero_and_nothing_divides_by_them():
    weight = gaussian(64, 8)
    weight[:, 3] = 0
    quantised = quantise(weight, 4, 32)
    assert not quantised.dense(3, 4).any()
    assert quantise(np.zeros((64, 8), np.float32), 8, 128).error == 0
    check_matrix("w", weight, quantised)


def test_scales_too_small_for_half_precision_are_kept_in_float32():
    weight = gaussian(64, 8) * np.float32(1e-5)
    quantised = quantise(weight, 4, 32)
    assert quantised.scales.dtype == np.float32
    assert quantised.error < 0.09
    assert quantise(gaussian(64, 8), 4, 32).scales.dtype == np.float16


def test_a_block_longer_than_the_matrix_is_shortened():
    assert quantise(gaussian(20, 4), 8, 128).block == 32
    assert quantise(gaussian(100, 4), 8, 128).block == 128


def test_swapped_nibbles_are_caught(monkeypatch):
    weight = gaussian(64, 32)
    right = nbits.nbits_codes
    monkeypatch.setattr(check, "nbits_codes", lambda q: (right(q) >> 4) | (right(q) << np.uint8(4)))
    with pytest.raises(ExportError, match="does not compute what it should"):
        check_matrix("w", weight, quantise(weight, 4, 32))


def test_columns_in_the_wrong_lanes_are_caught():
    weight = gaussian(64, 32)
    quantised = quantise(weight, 4, 32)
    packed = pack(quantised)
    lanes = packed.weights.reshape(2, -1, 16, 4)
    swapped = np.ascontiguousarray(lanes[:, :, ::-1]).reshape(packed.weights.shape)
    with pytest.raises(ExportError, match="does not compute what it should"):
        check_matrix("w", weight, quantised, replace(packed, weights=swapped))


def test_the_last_columns_of_a_wide_matrix_are_looked_at():
    weight = gaussian(64, 2600)
    quantised = quantise(weight, 8, 32)
    packed = pack(quantised)
    check_matrix("w", weight, quantised, packed)
    wrong = packed.weights.copy()
    wrong[-1] = wrong[-1, ::-1]
    with pytest.raises(ExportError, match="does not compute what it should"):
        check_matrix("w", weight, quantised, replace(packed, weights=wrong))


def test_a_wrong_scale_in_one_column_run_is_caught():
    weight = gaussian(64, 32)
    quantised = quantise(weight, 4, 32)
    scales = quantised.scales.copy()
    scales[: len(scales) // 2] *= 2
    with pytest.raises(ExportError, match="does not compute what it should"):
        check_matrix("w", weight, replace(quantised, scales=scales))


def test_a_matrix_that_does_not_survive_is_refused_with_a_remedy():
    rough = np.random.default_rng(0).standard_cauchy(size=(256, 16)).astype(np.float32)
    quantised = replace(quantise(rough, 4, 128), error=0.5)
    with pytest.raises(ExportError, match="smaller --block"):
        check_matrix("w", rough, quantised)
