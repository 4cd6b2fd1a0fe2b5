"""The exporter's packing is the layout of the contract, and loses nothing."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ml_dtypes = pytest.importorskip("ml_dtypes")
pytest.importorskip("onnx_ir")
pytest.importorskip("torch")

from paceline.export import pack as packing
from paceline.export.nbits import nbits_codes, nbits_form
from paceline.export.pack import Packed, pack, pack_floats
from paceline.export.quantize import Quantised, quantise
from paceline.runtime.ops import packed_matmul as contract

pytestmark = pytest.mark.export

SHAPES = [(64, 32), (172, 33), (20, 7), (256, 700), (31, 1), (1000, 16)]
FORMATS = [(4, 32), (4, 128), (5, 32), (6, 32), (8, 128), (8, 1024)]


def gaussian(k: int, n: int) -> np.ndarray:
    return np.random.default_rng(k + n).normal(size=(k, n)).astype(np.float32)


@st.composite
def matrices(draw):
    """Quantised ones of every format; codes, scales and minima are anything."""
    bits = draw(st.sampled_from(contract.CODE_BITS))
    block = contract.UNIT[bits] * draw(st.integers(1, 5))
    k, n = draw(st.integers(1, 200)), draw(st.integers(1, 70))
    minimum = bits in contract.MINIMUM_BITS and draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    blocks = -(-k // block)
    codes = np.full((n, blocks * block), 0 if minimum else contract.zero_point(bits), np.uint8)
    codes[:, :k] = rng.integers(0, 1 << bits, (n, k))
    scales, minima = rng.normal(size=(2, n, blocks)).astype(np.float16)
    return Quantised(codes, scales, minima if minimum else None, bits, block, k, 0.0)


@given(matrices(), st.sampled_from([1, 500, 1 << 20]))
@settings(deadline=None)
def test_every_byte_stands_where_the_contract_says(quantised, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_CHUNK", chunk)
        packed = pack(quantised)
    codes, minima = quantised.codes[:, : quantised.k].T, quantised.minima
    meant = contract.pack_codes(codes, quantised.bits, quantised.block, minimum=minima is not None)
    assert np.array_equal(packed.weights, meant)
    scales = contract.pack_scales(quantised.scales.T, None if minima is None else minima.T)
    assert np.array_equal(packed.scales, scales)
    assert np.array_equal(packed.dense(), quantised.dense(0, quantised.n).T)


@given(matrices(), st.integers(0, 99))
@settings(deadline=None)
def test_chosen_columns_have_the_codes_and_scales_that_they_had(quantised, seed):
    """In any order; codes of columns that only fill a tile do not matter, for their scales are 0."""
    whole = pack(quantised)
    rng = np.random.default_rng(seed)
    columns = rng.permutation(whole.n)[: rng.integers(1, whole.n + 1)]
    few = whole.chosen(columns)
    minima = None if quantised.minima is None else quantised.minima[columns]
    codes, scales = quantised.codes[columns], quantised.scales[columns]
    rows = replace(quantised, codes=codes, scales=scales, minima=minima)
    meant = pack(rows)
    assert np.array_equal(few.scales, meant.scales)
    assert (few.bits, few.block, few.k, few.n) == (meant.bits, meant.block, meant.k, meant.n)
    full = len(columns) // 16
    assert np.array_equal(few.weights[:full], meant.weights[:full])
    assert few.weights.shape == meant.weights.shape
    assert np.array_equal(few.dense(), whole.dense()[:, columns])


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_chosen_columns_of_floats_are_these_columns(kind):
    weight = gaussian(20, 37).astype(kind).astype(np.float32)
    bits = np.dtype(kind).itemsize * 8
    columns = np.array([36, 0, 17, 5])
    few = Packed(pack_floats(weight, kind), None, bits, 0, 20, 37).chosen(columns)
    assert np.array_equal(few.weights, pack_floats(weight[:, columns], kind))


@pytest.mark.parametrize(("k", "n"), SHAPES)
@pytest.mark.parametrize(("bits", "block"), FORMATS)
def test_packing_is_undone_bit_by_bit(k, n, bits, block):
    quantised = quantise(gaussian(k, n), bits, block)
    assert np.array_equal(pack(quantised).dense(), quantised.dense(0, n).T)


@pytest.mark.parametrize(
    "wrong",
    [
        {"block": 24}, {"block": 0}, {"bits": 7}, {"bits": 8}, {"k": 33},
        {"scales": np.ones((16, 2), np.float16)}, {"minima": np.ones((8, 1), np.float16)},
        {"codes": np.zeros((16, 40), np.uint8)},
    ],
    ids=str,
)  # fmt: skip
def test_a_matrix_whose_pieces_do_not_fit_each_other_is_refused(wrong):
    ones = np.ones((16, 1), np.float16)
    right = Quantised(np.zeros((16, 32), np.uint8), ones, ones, 5, 32, 32, 0.0)
    with pytest.raises(ValueError, match=r"blocks? of|minima|scales|columns"):
        replace(right, **wrong)


@given(matrices())
@settings(deadline=None, max_examples=50)
def test_codes_that_matmulnbits_takes_mean_the_same_matrix(quantised):
    form = nbits_form(quantised)
    if quantised.minima is not None:
        assert form is None
        return
    assert form.bits in (4, 8)
    assert np.array_equal(form.dense(0, form.n), quantised.dense(0, quantised.n))
    rows = nbits_codes(form).reshape(form.n, -1)
    back = np.stack([rows & 15, rows >> 4], axis=-1).reshape(form.n, -1) if form.bits == 4 else rows
    assert np.array_equal(back, form.codes)


@pytest.mark.parametrize(("k", "n"), SHAPES)
@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_floats_are_packed_as_the_contract_says_from_either_memory_order(k, n, kind):
    weight = gaussian(k, n)
    packed = pack_floats(weight, kind)
    assert np.array_equal(packed, contract.pack_columns(weight.astype(kind)))
    assert np.array_equal(packed, pack_floats(np.ascontiguousarray(weight.T).T, kind))
    back = Packed(packed, None, np.dtype(kind).itemsize * 8, 0, k, n).dense()
    assert np.array_equal(back, weight.astype(kind).astype(np.float32))


def test_cutting_into_chunks_changes_nothing(monkeypatch):
    weight = gaussian(172, 100)
    whole, floats = pack(quantise(weight, 4, 32)), pack_floats(weight, np.float16)
    monkeypatch.setattr(packing, "_CHUNK", 1000)
    pieces = pack(quantise(weight, 4, 32))
    assert np.array_equal(pieces.weights, whole.weights)
    assert np.array_equal(pieces.scales, whole.scales)
    assert np.array_equal(pack_floats(weight, np.float16), floats)


def test_a_run_of_columns_is_a_matrix_of_its_own():
    packed = pack(quantise(gaussian(96, 100), 4, 32))
    assert np.array_equal(packed.columns(32, 71).dense(), packed.dense()[:, 32:71])


def test_scales_that_do_not_fit_half_precision_are_refused():
    quantised = quantise(gaussian(64, 8) * np.float32(1e-5), 4, 32)
    with pytest.raises(ValueError, match="float16 scales, not float32"):
        pack(quantised)
