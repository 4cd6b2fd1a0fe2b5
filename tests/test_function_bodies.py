"""The ONNX function bodies of the packed products compute what the contract says, in stock ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")
pytest.importorskip("torch")

from body_runner import body_model, session
from packed_products import Format, Problem, random_matrix, random_problem

from paceline.export.bodies_matmul import piece_of
from paceline.runtime.ops import library
from paceline.runtime.ops import packed_matmul as contract

pytestmark = pytest.mark.export

FORMATS = (
    Format(4, 32), Format(4, 128), Format(4, 16), Format(8, 128), Format(8, 32), Format(8, 192),
    Format(4, 32, minimum=True), Format(4, 128, minimum=True), Format(4, 16, minimum=True),
    Format(5, 32), Format(5, 128), Format(5, 32, minimum=True), Format(5, 96, minimum=True),
    Format(6, 16), Format(6, 32), Format(6, 128), Format(6, 16, minimum=True), Format(6, 192, minimum=True),
    Format(16, kind="float16"), Format(16, kind="uint16"), Format(32, kind="float32"),
)  # fmt: skip
"""192: one block for all of a column."""
SHAPES = ((168, 88), (172, 66), (192, 64))
PRECISE = {4: 0.04, 5: 0.04, 6: 0.04, 8: 0.04}
"""Relative error that rounded activations may have; floats have none."""


def run_body(problem: Problem) -> np.ndarray:
    given = {"x": problem.x, **problem.matrix.constants(), **problem.extra}
    order = tuple(name if name in given else "" for name in contract.PRODUCTS[problem.op])
    fed = {name: given[name] for name in ("x", "residual") if name in given}
    constants = {name: array for name, array in given.items() if name not in fed}
    attributes = {"activation_bits": 8, **problem.matrix.attributes(), **problem.attributes}
    model = body_model(problem.op, order, constants, fed, **attributes)
    result: np.ndarray = session(model).run(None, fed)[0]
    return result


def meant(problem: Problem) -> np.ndarray:
    """The reference without rounded activations."""
    exact = Problem(
        problem.op, problem.matrix, problem.x, problem.extra, {**problem.attributes, "activation_bits": 32}
    )
    return exact.reference()[0]


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("K", "N"), SHAPES)
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_a_body_computes_the_product(form: Format, K: int, N: int, bias: bool) -> None:
    problem = random_problem("QMatMul", form, K=K, N=N, bias=bias)
    assert relative(run_body(problem), meant(problem)) < PRECISE.get(form.bits, 1e-6)


@pytest.mark.parametrize(
    "form", [Format(4, 32), Format(5, 32), Format(6, 16, minimum=True), Format(16, kind="float16")], ids=str
)
@pytest.mark.parametrize("op", list(contract.PRODUCTS)[1:])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_fused_body_computes_all_of_it(op: str, form: Format, bias: bool) -> None:
    problem = random_problem(op, form, K=168, N=88, bias=bias)
    assert relative(run_body(problem), meant(problem)) < PRECISE.get(form.bits, 1e-5)


@pytest.mark.parametrize("activation", contract.ACTIVATIONS)
def test_every_activation_has_a_body(activation: str) -> None:
    problem = random_problem("QMatMulGlu", Format(16, kind="float16"), activation=activation)
    assert relative(run_body(problem), meant(problem)) < 1e-5


def test_exact_activations_are_not_rounded() -> None:
    for bits, most in ((32, 1e-5), (8, 0.04)):
        problem = random_problem("QMatMul", Format(4, 32), K=192, N=64, activation_bits=bits)
        assert relative(run_body(problem), meant(problem)) < most
    assert relative(run_body(problem), meant(problem)) > 1e-4, "the other way does round"


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_the_body_of_the_embedding_gives_columns_bit_by_bit(form: Format) -> None:
    rng = np.random.default_rng(0)
    matrix = random_matrix(rng, 172, 66, form)
    ids = rng.integers(0, 66, (1, 9))
    order = tuple(n if n == "ids" or n in matrix.constants() else "" for n in contract.EMBEDDING_INPUTS)
    model = body_model("QEmbedding", order, matrix.constants(), {"ids": ids}, **matrix.attributes())
    (rows,) = session(model).run(None, {"ids": ids})
    assert np.array_equal(rows, matrix.dense().T[ids])
    assert session(model).run(None, {"ids": ids[:, :0]})[0].shape == (1, 0, 172)


@pytest.mark.parametrize(
    ("k", "block", "piece"), [(576, 32, 0), (576, 576, 64), (200, 224, 32), (192, 96, 32)]
)
def test_a_block_that_matmulnbits_does_not_know_is_cut_in_pieces(k: int, block: int, piece: int) -> None:
    assert piece_of(k, block) == piece


@pytest.mark.parametrize(("k", "block"), [(64, 96), (64, 8), (160, 168)])
def test_a_block_that_cannot_be_cut_has_no_body(k: int, block: int) -> None:
    with pytest.raises(ValueError, match=f"{k} rows in blocks of {block}"):
        piece_of(k, block)


def test_a_matrix_smaller_than_a_tile_and_a_block_has_a_body() -> None:
    problem = random_problem("QMatMul", Format(4, 128), K=36, N=6)
    assert relative(run_body(problem), meant(problem)) < PRECISE[4]


@pytest.mark.skipif(not library.available(), reason="the native kernels were not built here")
@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("op", list(contract.PRODUCTS))
def test_kernels_and_bodies_agree(op: str, form: Format) -> None:
    """Both round activations to 8 bits for each block, so they differ by float rounding and a code here and there; but
    what minima add is rounded by the kernels alone, so there neither rounds.
    """
    rounding = {"activation_bits": 32} if form.minimum else {}
    problem = random_problem(op, form, K=192, N=88, **rounding)
    one_scale = form.block == 192 and not form.minimum
    (native,) = problem.node()()
    assert relative(run_body(problem), native) < (0.04 if one_scale else 2e-3)


_LOAD = """
import sys, threading, time
import onnxruntime as ort

def used():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

before, most, done = used(), 0, False
def watch():
    global most
    while not done:
        most = max(most, used())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
done = True
thread.join()
print(most - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("form", "most"),
    [(Format(4, 32), 6.5), (Format(8, 128), 6.5), (Format(5, 32), 20), (Format(6, 16), 20)],
    ids=str,
)
def test_loading_bodies_takes_a_few_times_the_packed_weights(
    form: Format, most: float, tmp_path: Path
) -> None:
    """A dense float32 form would take 8 times the 4-bit weights, and its folding twice that."""
    import onnx_ir as ir

    from paceline.export.weights import write_model

    rng = np.random.default_rng(0)
    K, N, count = 1024, 4096, 16
    x = ir.val("x", ir.DataType.FLOAT, ["T", K])
    values, nodes = [], []
    for i in range(count):
        codes = rng.integers(0, 256, (N // 16, K * form.bits // 32, 64)).astype(np.uint8)
        scales = np.full((N // 16, K // form.block, 16), 0.01, np.float16)
        operands = [
            ir.val(f"w{i}", ir.DataType.UINT8, codes.shape, const_value=ir.tensor(codes)),
            ir.val(f"s{i}", ir.DataType.FLOAT16, scales.shape, const_value=ir.tensor(scales)),
        ]
        attributes = {"K": K, "N": N, "bits": form.bits, "block_size": form.block, "activation_bits": 8}
        node = ir.node("QMatMul", [x, *operands], attributes, domain="paceline")
        node.outputs[0].name, node.outputs[0].dtype = f"y{i}", ir.DataType.FLOAT
        values += operands
        nodes.append(node)
    outs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([x], outs, nodes=nodes, initializers=values, opset_imports={"": 23}, name="many")
    model = ir.Model(graph, ir_version=10)
    from paceline.export.functions import append_functions

    append_functions(model)
    write_model(model, tmp_path, lambda share: None)
    weights = count * K * N * form.bits // 8
    path = str(tmp_path / "model.onnx")
    child = subprocess.run(
        [sys.executable, "-c", _LOAD, path], check=True, capture_output=True, text=True, timeout=300
    )
    assert int(child.stdout) < most * weights
