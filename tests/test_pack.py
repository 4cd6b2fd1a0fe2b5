"""The exporter's packing is the layout of the contract, and loses nothing."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

import numpy as np
import pytest

ml_dtypes = pytest.importorskip("ml_dtypes")
pytest.importorskip("onnx_ir")
pytest.importorskip("torch")

from paceline.export import pack as packing
from paceline.export.pack import Packed, pack, pack_floats
from paceline.export.quantize import Quantised, quantise
from paceline.runtime.ops import packed_matmul as contract

pytestmark = pytest.mark.export

SHAPES = [(64, 32), (172, 33), (20, 7), (256, 700), (31, 1), (1000, 16)]
FORMATS = [(4, 32), (4, 128), (8, 128), (8, 1024)]


def gaussian(k: int, n: int) -> np.ndarray:
    return np.random.default_rng(k + n).normal(size=(k, n)).astype(np.float32)


def codes_of(quantised: Quantised) -> np.ndarray:
    """uint8[K, N], read out of the form that MatMulNBits has."""
    n = len(quantised.packed)
    rows = quantised.packed.reshape(n, -1)
    if quantised.bits == 4:
        rows = np.stack([rows & 15, rows >> 4], axis=-1).reshape(n, -1)
    return rows[:, : quantised.k].T


@pytest.mark.parametrize(("k", "n"), SHAPES)
@pytest.mark.parametrize(("bits", "block"), FORMATS)
def test_packed_codes_and_scales_stand_where_the_contract_says(k, n, bits, block):
    quantised = quantise(gaussian(k, n), bits, block)
    packed = pack(quantised)
    assert np.array_equal(packed.weights, contract.pack_codes(codes_of(quantised), bits, quantised.block))
    scales = quantised.scales.reshape(n, -1).T
    assert np.array_equal(packed.scales, contract.pack_columns(np.ascontiguousarray(scales)))


@pytest.mark.parametrize(("k", "n"), SHAPES)
@pytest.mark.parametrize(("bits", "block"), FORMATS)
def test_packing_is_undone_bit_by_bit(k, n, bits, block):
    quantised = quantise(gaussian(k, n), bits, block)
    assert np.array_equal(pack(quantised).dense(), quantised.dense(0, n).T)


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
