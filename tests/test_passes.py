"""Graph passes change the form of a graph, never what it computes."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

ir = pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("torch")

import ml_dtypes

from paceline.export.check import count_nodes
from paceline.export.functions import append_functions
from paceline.export.narrow import narrow
from paceline.export.passes import nodes_per_layer, simplify
from paceline.export.products import as_floats, rounding, store_matmuls
from paceline.export.weights import DATA, GRAPH, write_model

pytestmark = pytest.mark.export

RNG = np.random.default_rng(0)


def weight(name, *shape):
    array = RNG.normal(size=shape).astype(np.float32)
    return ir.val(name, ir.DataType.FLOAT, shape, const_value=ir.tensor(array, name=name))


def graph(nodes, inputs, outputs, weights):
    for value in outputs:
        value.dtype = value.dtype or ir.DataType.FLOAT
    made = ir.Graph(inputs, outputs, nodes=nodes, initializers=weights, opset_imports={"": 23}, name="g")
    return ir.Model(made, ir_version=10)


def run(model, **feed):
    raw = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(raw, providers=["CPUExecutionProvider"]).run(None, feed)


def unseen(*_):
    """Looks at no matrix."""


def named(node, *names):
    for value, name in zip(node.outputs, names, strict=True):
        value.name = name
    return node


def projections(biased=(True, False, True)):
    """q, k, v as Gemm, MatMul and MatMul by a Transpose, some with a bias."""
    x = ir.val("x", ir.DataType.FLOAT, ["T", 16])
    wq, wk, wv = weight("wq", 8, 16), weight("wk", 16, 4), weight("wv", 6, 16)
    bq, bv = weight("bq", 8), weight("bv", 6)
    q = named(ir.node("Gemm", [x, wq, *([bq] if biased[0] else [])], {"transB": 1}), "q")
    k = named(ir.node("MatMul", [x, wk]), "k")
    turn = named(ir.node("Transpose", [wv], {"perm": [1, 0]}), "wvt")
    v = named(ir.node("MatMul", [x, turn.outputs[0]]), "v0" if biased[2] else "v")
    nodes, outs, weights = [q, k, turn, v], [q.outputs[0], k.outputs[0], v.outputs[0]], [wq, wk, wv]
    if biased[0]:
        weights.append(bq)
    if biased[2]:
        add = named(ir.node("Add", [bv, v.outputs[0]]), "v")
        nodes.append(add)
        outs[2] = add.outputs[0]
        weights.append(bv)
    return graph(nodes, [x], outs, weights)


@pytest.mark.parametrize("biased", [(True, False, True), (False, False, False), (True, True, True)])
def test_products_of_one_input_become_one_matmul_with_their_biases(biased):
    model = projections(biased)
    x = RNG.normal(size=(5, 16)).astype(np.float32)
    before = run(model, x=x)
    simplify(model)
    ops = Counter(n.op_type for n in model.graph)
    assert ops == {"MatMul": 1, "Split": 1} | ({"Add": 1} if any(biased) else {})
    for a, b in zip(before, run(model, x=x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_no_unused_weight_is_left():
    model = projections()
    simplify(model)
    assert all(v.uses() for v in model.graph.initializers.values())


def test_products_of_different_inputs_are_not_fused():
    x, y = (ir.val(n, ir.DataType.FLOAT, ["T", 16]) for n in "xy")
    a, b = weight("a", 16, 4), weight("b", 16, 4)
    nodes = [named(ir.node("MatMul", [x, a]), "p"), named(ir.node("MatMul", [y, b]), "q")]
    model = graph(nodes, [x, y], [n.outputs[0] for n in nodes], [a, b])
    simplify(model)
    assert Counter(n.op_type for n in model.graph) == {"MatMul": 2}


def test_equal_subexpressions_stand_once():
    x = ir.val("x", ir.DataType.FLOAT, ["T", 16])
    nodes = [named(ir.node("Sigmoid", [x]), "a"), named(ir.node("Sigmoid", [x]), "b")]
    nodes.append(named(ir.node("Mul", [nodes[0].outputs[0], nodes[1].outputs[0]]), "y"))
    model = graph(nodes, [x], [nodes[2].outputs[0]], [])
    simplify(model)
    assert Counter(n.op_type for n in model.graph) == {"Sigmoid": 1, "Mul": 1}


def test_a_node_that_nothing_needs_goes():
    x = ir.val("x", ir.DataType.FLOAT, ["T", 16])
    nodes = [named(ir.node("Sigmoid", [x]), "y"), named(ir.node("Exp", [x]), "unused")]
    model = graph(nodes, [x], [nodes[0].outputs[0]], [])
    simplify(model)
    assert [n.op_type for n in model.graph] == ["Sigmoid"]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "portable"])
def test_a_quantised_graph_holds_no_float_matrix_and_stays_close(packed):
    model = projections()
    x = RNG.normal(size=(5, 16)).astype(np.float32)
    before = np.concatenate(run(model, x=x), axis=1)
    simplify(model)
    seen = []
    choose = rounding(8, 128)
    errors = store_matmuls(model, "float32", choose, lambda name, *_: seen.append(name), packed=packed)
    append_functions(model)
    assert list(errors) == seen
    assert {n.op_type for n in model.graph} >= {"QMatMul" if packed else "MatMulNBits"}
    assert not [n for n in model.graph if n.op_type == "MatMul"]
    for value in model.graph.initializers.values():
        assert len(value.shape) < 2 or value.dtype in (ir.DataType.UINT8, ir.DataType.FLOAT16)
    after = np.concatenate(run(model, x=x), axis=1)
    assert np.linalg.norm(after - before) / np.linalg.norm(before) < 0.03


def tied(dtype):
    """Embedding and head over one table whose values all fit the type."""
    ids = ir.val("ids", ir.DataType.INT64, ["T"])
    table = RNG.normal(size=(64, 32)).astype(dtype).astype(np.float32)
    e = ir.val("e", ir.DataType.FLOAT, (64, 32), const_value=ir.tensor(table, name="e"))
    h = ir.val("e.T", ir.DataType.FLOAT, (32, 64), const_value=ir.tensor(table.T.copy(), name="e.T"))
    gather = named(ir.node("Gather", [e, ids]), "h")
    gather.outputs[0].dtype = ir.DataType.FLOAT
    head = named(ir.node("MatMul", [gather.outputs[0], h]), "logits")
    return graph([gather, head], [ids], [head.outputs[0]], [e, h])


@pytest.mark.parametrize(
    ("dtype", "stored"), [(np.float16, ir.DataType.FLOAT16), (ml_dtypes.bfloat16, ir.DataType.BFLOAT16)]
)
def test_a_tied_table_is_stored_once_in_the_checkpoints_own_16_bits_and_changes_no_result(dtype, stored):
    model = tied(dtype)
    ids = np.array([3, 1, 60])
    (before,) = run(model, ids=ids)
    simplify(model)
    narrow(model, np.dtype(dtype).name, lossless=True)
    kept = [v for v in model.graph.initializers.values() if len(v.shape) == 2]
    assert [v.dtype for v in kept] == [stored]
    np.testing.assert_allclose(run(model, ids=ids)[0], before, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "stored"), [(np.float16, ir.DataType.FLOAT16), (ml_dtypes.bfloat16, ir.DataType.BFLOAT16)]
)
def test_a_tied_table_is_packed_once_in_the_checkpoints_own_16_bits_and_changes_no_result(dtype, stored):
    model = tied(dtype)
    ids = np.array([3, 1, 60])
    (before,) = run(model, ids=ids)
    store_matmuls(model, np.dtype(dtype).name, as_floats, unseen, packed=True)
    narrow(model, np.dtype(dtype).name, lossless=True)
    append_functions(model)
    assert [(v.dtype, list(v.shape)) for v in model.graph.initializers.values()] == [(stored, [4, 32, 16])]
    assert {n.op_type for n in model.graph} == {"QEmbedding", "QMatMul"}
    np.testing.assert_allclose(run(model, ids=ids)[0], before, atol=1e-5)


def test_matrices_that_16_bits_would_change_are_packed_in_32():
    model = tied(np.float32)
    store_matmuls(model, "bfloat16", as_floats, unseen, packed=True)
    [value] = model.graph.initializers.values()
    assert value.dtype == ir.DataType.FLOAT
    assert {n.attributes["bits"].as_int() for n in model.graph} == {32}


def test_a_matrix_whose_scales_do_not_fit_half_precision_stays_portable():
    model = tied(np.float32)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1e-6), name=value.name)
    store_matmuls(model, "float32", rounding(4, 32), unseen, packed=True)
    assert {n.op_type for n in model.graph} == {"Gather", "MatMulNBits"}
    ort_options = ort.SessionOptions()
    ort_options.log_severity_level = 4
    raw = ir.to_proto(model).SerializeToString()
    ort.InferenceSession(raw, ort_options, providers=["CPUExecutionProvider"])


def test_float32_values_that_16_bits_would_change_stay_float32():
    model = tied(np.float32)
    simplify(model)
    narrow(model, "float32", lossless=True)
    assert {v.dtype for v in model.graph.initializers.values()} == {ir.DataType.FLOAT}


def test_where_losses_are_allowed_a_float32_table_becomes_half():
    model = tied(np.float32)
    simplify(model)
    narrow(model, "float32", lossless=False)
    assert {v.dtype for v in model.graph.initializers.values()} == {ir.DataType.FLOAT16}


def test_a_table_beyond_half_precisions_range_stays_float32():
    model = tied(np.float32)
    table = model.graph.initializers["e"]
    table.const_value = ir.tensor(table.const_value.numpy() * np.float32(1e6), name="e")
    narrow(model, "float32", lossless=False)
    assert model.graph.initializers["e"].dtype == ir.DataType.FLOAT


def test_written_weights_are_aligned_and_the_graph_runs_from_the_file(tmp_path):
    model = tied(np.float32)
    (before,) = run(model, ids=np.array([5]))
    shares = []
    listed, size = write_model(model, tmp_path, shares.append)
    assert shares[-1] == 1.0
    assert size == (tmp_path / GRAPH).stat().st_size + (tmp_path / DATA).stat().st_size
    for value in model.graph.initializers.values():
        assert isinstance(value.const_value, ir.ExternalTensor)
        assert value.const_value.offset % 4096 == 0
    assert listed == {}, "only large weights are listed"
    session = ort.InferenceSession(str(tmp_path / GRAPH), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"ids": np.array([5])})[0], before)


def test_large_weights_are_listed_with_the_bytes_that_they_have_in_the_file(tmp_path):
    wide = weight("wide", 128, 128)
    x = ir.val("x", ir.DataType.FLOAT, ["T", 128])
    product = named(ir.node("MatMul", [x, wide]), "y")
    model = graph([product], [x], [product.outputs[0]], [wide])
    store_matmuls(model, "float32", as_floats, unseen, packed=True)
    array = wide.const_value.numpy()
    [(name, place)] = write_model(model, tmp_path, lambda share: None)[0].items()
    assert name in model.graph.initializers
    assert (place.dtype, place.shape) == ("float32", [8, 128, 16])
    assert place.offset % 4096 == 0
    raw = np.fromfile(tmp_path / DATA, np.float32, place.bytes // 4, offset=place.offset)
    assert np.array_equal(raw.reshape(8, 128, 16)[3, :, 5], array[:, 3 * 16 + 5])


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    alive, most = set(), []

    class Watched(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def make(i):
        def lazily():
            array = np.full((64, 64), i, np.float32).view(Watched)
            alive.add(id(array))
            most.append(len(alive))
            return ir.tensor(array)

        return lazily

    values = []
    for i in range(6):
        shape = ir.Shape([64, 64])
        lazy = ir.LazyTensor(make(i), ir.DataType.FLOAT, shape, name=f"w{i}")
        values.append(ir.val(f"w{i}", ir.DataType.FLOAT, shape, const_value=lazy))
    total = named(ir.node("Sum", values), "y")
    write_model(graph([total], [], [total.outputs[0]], values), tmp_path, lambda share: None)
    assert len(most) == 6
    assert max(most) <= 2


def layered(layers):
    """A toy with the outputs of the contract: each layer is MatMul, Sigmoid and Add, and gives a key."""
    x = ir.val("x", ir.DataType.FLOAT, ["T", 96])
    at, nodes, outs, weights = x, [], [], []
    for i in range(layers):
        w = weight(f"w{i}", 96, 96)
        product = named(ir.node("MatMul", [at, w]), f"new_k.{i}")
        gate = named(ir.node("Sigmoid", [product.outputs[0]]), f"s{i}")
        add = named(ir.node("Add", [at, gate.outputs[0]]), f"a{i}")
        nodes += [product, gate, add]
        outs.append(product.outputs[0])
        weights.append(w)
        at = add.outputs[0]
    return graph(nodes, [x], [at, *outs], weights)


def test_nodes_are_counted_by_what_one_more_layer_adds():
    assert nodes_per_layer(layered(4).graph, 4) == 3
    assert nodes_per_layer(layered(1).graph, 1) == 3


def test_the_count_without_weights_is_that_of_the_real_optimised_graph(tmp_path):
    model = layered(3)
    narrow(model, "float32", lossless=False)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "real.onnx")
    options.log_severity_level = 4
    raw = ir.to_proto(model).SerializeToString()
    ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    optimised = ir.load(tmp_path / "real.onnx").graph
    assert not [n for n in optimised if n.op_type == "Cast"], "the casts of the weights are folded at load"
    real = nodes_per_layer(optimised, 3)
    assert count_nodes(model, 3) == real == 3
