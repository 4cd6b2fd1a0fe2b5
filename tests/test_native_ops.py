"""`paceline::QMatMul` and its kin in the native library: right, and the same bits however they are run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from one_node import Array, OneNode, kernels_of
from packed_products import FORMATS, Format, Problem, random_matrix, random_problem, random_rows

from paceline.runtime.ops import library
from paceline.runtime.ops import packed_matmul as contract

pytestmark = [
    pytest.mark.export,
    pytest.mark.skipif(not library.available(), reason="the native kernels were not built here"),
]
OPS = tuple(contract.PRODUCTS)
SOME = (
    Format(5, 32, minimum=True),
    Format(4, 32),
    Format(8, 168),
    Format(16, kind="float16"),
    Format(32, kind="float32"),
)


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_packing_codes_is_undone_by_unpacking(form: Format) -> None:
    rng = np.random.default_rng(1)
    if form.bits > 8:
        columns = rng.integers(0, 1 << 16, (7, 21)).astype(np.uint16)
        assert same_bits(contract.unpack_columns(contract.pack_columns(columns), 21), columns)
        return
    codes = rng.integers(0, 1 << form.bits, (173, 37)).astype(np.uint8)
    packed = contract.pack_codes(codes, form.bits, form.block, minimum=form.minimum)
    assert packed.shape == (3, contract.padded(173, form.block) * form.bits // 32, 64)
    assert np.array_equal(contract.unpack_codes(packed, form.bits, 173, 37), codes)


def test_the_layout_is_the_one_that_bundles_store() -> None:
    """Byte 4n + j of line L; a change here is a new version of the layout."""
    codes = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)
    eight = contract.pack_codes(codes, 8, 16)
    assert eight[0, 3, 4 * 5 + 2] == codes[4 * 3 + 2, 5]
    four = contract.pack_codes(codes & 15, 4, 16)
    assert four[0, 1, 4 * 7 + 3] == (codes[8 + 3, 7] & 15) | (codes[8 + 4 + 3, 7] & 15) << 4
    codes = np.arange(16 * 32, dtype=np.uint16).reshape(32, 16).astype(np.uint8)
    five, six = contract.pack_codes(codes & 31, 5, 32), contract.pack_codes(codes & 63, 6, 32)
    upper = [codes[4 * quad + 2, 5] >> 4 for quad in range(8)]
    assert five[0, 0, 4 * 5 + 2] == sum(int(bits & 1) << quad for quad, bits in enumerate(upper))
    assert six[0, 3, 4 * 5 + 2] == sum(int(bits & 3) << 2 * quad for quad, bits in enumerate(upper[4:]))
    assert five[0, 2, 4 * 5 + 2] == six[0, 2, 4 * 5 + 2] == four_bits(codes, 8, 5, 2)
    scales = np.arange(21, dtype=np.float16)[None]
    both = contract.pack_scales(scales, scales + 100)
    assert both.shape == (2, 1, 32)
    assert [both[1, 0, 3], both[1, 0, 16 + 3]] == [19, 119]


def four_bits(codes: Array, k: int, n: int, j: int) -> int:
    """The low bits of two quads in a byte."""
    return int(codes[k + j, n] & 15) | int(codes[k + 4 + j, n] & 15) << 4


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_a_product_is_what_the_reference_says(op: str, form: Format) -> None:
    for bits in (8, 32):
        problem = random_problem(op, form, activation_bits=bits)
        (y,) = problem.node()()
        expected, slack = problem.reference()
        assert y.shape == expected.shape
        assert (np.abs(y - expected) <= slack).all(), np.abs((y - expected) / slack).max()


@pytest.mark.parametrize("activation", contract.ACTIVATIONS)
@pytest.mark.parametrize("op", ["QMatMulGlu", "NormQMatMulGlu"])
def test_every_activation_is_what_the_reference_says(op: str, activation: str) -> None:
    problem = random_problem(op, Format(32, kind="float32"), N=96, bias=False, activation=activation)
    (y,) = problem.node()()
    expected, slack = problem.reference()
    assert (np.abs(y - expected) <= slack).all()


@pytest.mark.parametrize("form", SOME, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_a_row_has_the_same_bits_in_any_company_on_any_threads_and_instruction_set(
    op: str, form: Format
) -> None:
    problem = random_problem(op, form, rows=64, N=680)
    (whole,) = problem.node()()
    for level in library.levels():
        with kernels_of(level):
            for threads in (1, 2):
                node = problem.node(threads=threads)
                for rows in (
                    slice(0, 1),
                    slice(63, 64),
                    slice(5, 7),
                    slice(3, 12),
                    slice(1, 18),
                    slice(10, 43),
                ):
                    assert same_bits(node(**problem.rows(rows))[0], whole[rows]), (level, threads, rows)
                assert same_bits(node()[0], whole), (level, threads)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_exact_activations_have_the_same_bits_everywhere_too(form: Format) -> None:
    problem = random_problem("QMatMul", form, rows=33, activation_bits=32)
    (whole,) = problem.node()()
    for level in library.levels():
        with kernels_of(level):
            node = problem.node(threads=2)
            for row in (0, 20, 32):
                assert same_bits(node(**problem.rows(slice(row, row + 1)))[0], whole[row : row + 1]), level


@pytest.mark.parametrize("form", SOME, ids=str)
def test_a_row_that_is_not_finite_leaves_the_others_alone(form: Format) -> None:
    problem = random_problem("NormQMatMul", form, rows=6)
    node = problem.node()
    (clean,) = node()
    for bad in (np.nan, np.inf, -np.inf):
        x = problem.x.copy()
        x[2, 100] = bad
        (y,) = node(x=x)
        others = [0, 1, 3, 4, 5]
        assert same_bits(y[others], clean[others])
        assert np.isnan(y[2]).all()


def test_rows_of_zeros_give_the_bias() -> None:
    for form in FORMATS:
        problem = random_problem("QMatMul", form)
        (y,) = problem.node()(x=np.zeros_like(problem.x))
        assert np.array_equal(y, np.broadcast_to(problem.extra["bias"], y.shape))


def test_leading_dimensions_are_kept_and_may_be_empty() -> None:
    problem = random_problem("QMatMul", Format(4, 32), rows=6)
    node = problem.node()
    (flat,) = node()
    assert same_bits(node(x=problem.x.reshape(1, 2, 3, -1))[0], flat.reshape(1, 2, 3, -1))
    assert same_bits(node(x=problem.x[0])[0], flat[0])
    assert node(x=problem.x[:0])[0].shape == (0, 88)


@pytest.mark.parametrize("op", OPS)
def test_weights_may_be_fed_as_well_as_constant(op: str) -> None:
    problem = random_problem(op, Format(8, 128))
    everything = ("x", "residual", "norm", "weights", "scales", "bias")
    assert same_bits(problem.node(fed=everything)()[0], problem.node()()[0])


def test_a_session_may_run_in_several_threads_at_once() -> None:
    problem = random_problem("NormQMatMulGlu", Format(4, 32), rows=40, N=400)
    node = problem.node(threads=2)
    (whole,) = node()
    slices = [slice(i, i + 1 + i % 7) for i in range(30)] * 4
    with ThreadPoolExecutor(4) as pool:
        for rows, (y,) in zip(slices, pool.map(lambda r: node(**problem.rows(r)), slices), strict=True):
            assert same_bits(y, whole[rows])


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_an_embedding_is_a_column_of_the_matrix(form: Format) -> None:
    matrix = random_matrix(np.random.default_rng(2), 168, 300, form)
    ids = np.array([[0, 299, 17], [16, 15, 17]], np.int64)
    for level in library.levels():
        with kernels_of(level):
            table = OneNode(
                "QEmbedding", ("ids", "weights", "scales" if form.block else ""), matrix.constants(), {"ids": ids},
                **matrix.attributes(),
            )  # fmt: skip
            assert same_bits(table()[0], matrix.dense().T[ids]), level
            assert table(ids=ids[:0])[0].shape == (0, 3, 168)
            for outside in (-1, 300, 1 << 62):
                with pytest.raises(Exception, match=f"token id {outside} is not in a vocabulary of 300"):
                    table(ids=np.array([3, outside], np.int64))


def broken(problem: Problem, **changed: object) -> OneNode:
    """The problem with other inputs (None = absent) or attributes."""
    given: dict[str, Array] = {"x": problem.x, **problem.matrix.constants(), **problem.extra}
    attributes = {**problem.matrix.attributes(), **problem.attributes}
    for name, value in changed.items():
        kept: dict[str, object] = given if name in contract.PRODUCTS[problem.op] else attributes  # type: ignore[assignment]
        kept.pop(name, None)
        if value is not None:
            kept[name] = value
    order = tuple(name if name in given else "" for name in contract.PRODUCTS[problem.op])
    constants = {name: a for name, a in given.items() if name not in ("x", "residual")}
    fed = {name: a for name, a in given.items() if name in ("x", "residual")}
    return OneNode(problem.op, order, constants, fed, **attributes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": np.zeros((6, 23, 64), np.uint8)}, r"weights is uint8\[6, 23, 64\] instead of uint8\[6, 24, 64\]"),
        ({"weights": np.zeros((6, 24, 64), np.float32)}, r"weights is float32\[6, 24, 64\] instead of uint8"),
        ({"scales": np.zeros((6, 6, 15), np.float16)}, r"scales is float16\[6, 6, 15\] instead of float16\[6, 6, 16\]"),
        ({"scales": None}, "scales is absent"),
        ({"norm": np.zeros(169, np.float32)}, r"norm is float32\[169\] instead of float32\[168\]"),
        ({"bias": np.zeros((1, 88), np.float32)}, r"bias is float32\[1, 88\] instead of float32\[88\]"),
        ({"x": np.zeros((2, 167), np.float32)}, r"x is float32\[2, 167\], but its last size must be K = 168"),
        ({"x": np.zeros((1,) * 9, np.float32)}, "more than 8 dimensions"),
        ({"K": 0}, "attribute K is 0, not 1 to"),
        ({"K": 1 << 40}, "attribute K is 1099511627776, not 1 to"),
        ({"K": None}, "attribute K is not an integer"),
        ({"N": 2.5}, "attribute N is not an integer"),
        ({"bits": 7}, "attribute bits is 7, not 4, 5, 6, 8, 16 or 32"),
        ({"bits": 5, "block_size": 48}, "attribute block_size is 48, not a multiple of 32"),
        ({"bits": 6, "block_size": 24}, "attribute block_size is 24, not a multiple of 16"),
        ({"bits": 8, "scales": np.zeros((6, 6, 32), np.float16)}, r"instead of"),
        ({"scales": np.zeros((6, 6, 33), np.float16)}, r"instead of float16\[6, 6, 16\]"),
        ({"bits": 16}, "attribute block_size is 32, not 0 for weights that are not quantised"),
        ({"block_size": 12}, "attribute block_size is 12, not a multiple of 8"),
        ({"block_size": -8}, "attribute block_size is -8, not a multiple of 8"),
        ({"activation_bits": 16}, "attribute activation_bits is 16, not 8 or 32"),
        ({"activation_bits": "8"}, "attribute activation_bits is not an integer"),
        ({"epsilon": None}, "attribute epsilon is not a float"),
        ({"activation": "relu"}, "attribute activation is 'relu', not silu, gelu or gelu_tanh"),
        ({"activation": 3}, "attribute activation is not a string"),
        ({"N": 87}, "N is odd"),
    ],
)  # fmt: skip
def test_a_wrong_node_is_refused_in_one_line_that_names_operator_and_cause(
    changed: dict[str, object], message: str
) -> None:
    with pytest.raises(Exception, match=message) as caught:
        broken(random_problem("NormQMatMulGlu", Format(4, 32)), **changed)()
    assert "paceline::NormQMatMulGlu: " in str(caught.value)


def test_a_residual_of_another_shape_is_refused() -> None:
    problem = random_problem("QMatMulAdd", Format(4, 32))
    node = problem.node()
    for shape in ((5, 87), (4, 88), (1, 5, 88), (88,)):
        with pytest.raises(Exception, match=r"instead of float32\[5, 88\]"):
            node(residual=np.zeros(shape, np.float32))


def test_scales_for_weights_that_are_not_quantised_are_refused() -> None:
    problem = random_problem("QMatMul", Format(32, kind="float32"))
    with pytest.raises(Exception, match="scales are given"):
        broken(problem, scales=np.zeros((6, 6, 16), np.float16))()
    with pytest.raises(Exception, match=r"weights are float32\[6, 168, 16\], not of 16 bits"):
        broken(problem, bits=16)()


def test_random_wrong_inputs_end_in_an_error_or_an_answer_of_the_right_shape() -> None:
    rng = np.random.default_rng(5)
    types = ("float32", "float16", "uint8", "int8", "int32", "int64", "uint16")
    refused = 0
    for seed in range(150):
        problem = random_problem(OPS[seed % 5], SOME[seed // 5 % 5], rows=2, K=24, N=20, seed=seed)
        name = str(rng.choice([n for n in contract.PRODUCTS[problem.op] if n != "x"]))
        shape = tuple(int(n) for n in rng.integers(0, 5, rng.integers(0, 5)))
        wrong = rng.integers(0, 200, shape).astype(str(rng.choice(types)))
        attribute = str(rng.choice(["K", "N", "bits", "block_size", "activation_bits"]))
        value = int(rng.choice([-1, 0, 1, 4, 7, 8, 16, 24, 32, 1 << 31, 1 << 62, -(1 << 63)]))
        changed = {name: wrong} if seed % 2 else {attribute: value}
        try:
            (y,) = broken(problem, **changed)()
        except Exception:  # of whichever class ONNX Runtime chose
            refused += 1
        else:
            assert y.shape == (2, 10 if problem.op.endswith("Glu") else 20)
    assert 100 < refused < 150


def test_long_sums_do_not_overflow() -> None:
    """The largest codes against the largest activations, in one block of 65536."""
    form = Format(8, 65536)
    codes = np.full((65536, 16), 255, np.uint8)
    codes[:, 8:] = 0
    matrix = random_matrix(np.random.default_rng(0), 65536, 16, form)
    scales = contract.pack_columns(np.ones((1, 16), np.float16))
    constants = {"weights": contract.pack_codes(codes, 8, 65536), "scales": scales}
    x = np.ones((3, 65536), np.float32)
    for level in library.levels():
        with kernels_of(level):
            node = OneNode("QMatMul", ("x", "weights", "scales"), constants, {"x": x}, **matrix.attributes())
            expected = np.where(np.arange(16) < 8, 65536.0 * 127, -65536.0 * 128)
            assert np.allclose(node()[0], expected, rtol=1e-6), level


def test_random_rows_have_outliers() -> None:
    """Else a test of scales by block would prove little."""
    x = random_rows(np.random.default_rng(0), 4, 168)
    assert np.abs(x[:, ::56]).mean() > 5 * np.abs(x[:, 1::56]).mean()
