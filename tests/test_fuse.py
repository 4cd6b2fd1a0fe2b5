"""What packed products take in, and what they leave alone: small graphs, each with the same result before and after."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")
pytest.importorskip("torch")

from body_runner import session

from paceline.export.functions import append_functions
from paceline.export.fuse import fuse_products
from paceline.export.products import as_floats, store_matmuls

pytestmark = pytest.mark.export

RNG = np.random.default_rng(0)
WIDTH = 24


class Net:
    """A small graph on x[1, T, 24] that is written down node by node."""

    def __init__(self) -> None:
        self.x = ir.val("x", ir.DataType.FLOAT, [1, "T", WIDTH])
        self.nodes, self.weights = [], []

    def constant(self, *shape, kind=np.float32):
        """Values that half precision holds."""
        array = RNG.normal(size=shape).astype(np.float16).astype(kind)
        name = f"w{len(self.weights)}"
        value = ir.val(name, ir.tensor(array).dtype, shape, const_value=ir.tensor(array, name=name))
        self.weights.append(value)
        return value

    def number(self, value):
        array = np.array(value)
        name = f"w{len(self.weights)}"
        found = ir.val(name, ir.tensor(array).dtype, array.shape, const_value=ir.tensor(array, name=name))
        self.weights.append(found)
        return found

    def node(self, op, *inputs, width=None, shape=None, outputs=1, **attributes):
        node = ir.node(op, list(inputs), attributes, num_outputs=outputs)
        for i, out in enumerate(node.outputs):
            out.name, out.dtype = f"{op}{len(self.nodes)}.{i}", ir.DataType.FLOAT
            out.shape = ir.Shape(shape or [1, "T", width or WIDTH])
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def product(self, x, width=WIDTH):
        return self.node("MatMul", x, self.constant(int(x.shape[-1]), width), width=width)

    def norm(self, x, axis=-1):
        return self.node("RMSNormalization", x, self.constant(WIDTH), axis=axis, epsilon=1e-3)

    def gates(self, width=20):
        return self.node(
            "Split", self.product(self.x, 2 * width), width=width, outputs=2, axis=-1, num_outputs=2
        )

    def model(self, *outputs):
        graph = ir.Graph(
            [self.x],
            list(outputs),
            nodes=self.nodes,
            initializers=self.weights,
            opset_imports={"": 23},
            name="net",
        )
        return ir.Model(graph, ir_version=10)


def fused(net, *outputs):
    """Operators after fusing; the results must not have changed."""
    return fused_model(net, *outputs)[1]


def fused_model(net, *outputs):
    """The model as well."""
    model = net.model(*outputs)
    x = RNG.normal(size=(1, 5, WIDTH)).astype(np.float32)
    before = session(model).run(None, {"x": x})
    store_matmuls(model, "float16", as_floats, lambda *_: None, packed=True)
    fuse_products(model)
    append_functions(model)
    for a, b in zip(before, session(model).run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5)
    return model, Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_constant_row_becomes_the_bias(swapped):
    net = Net()
    pair = [net.product(net.x), net.constant(WIDTH)]
    assert fused(net, net.node("Add", *(pair[::-1] if swapped else pair))) == {"QMatMul": 1}


def test_a_sum_that_broadcasts_is_no_bias_and_no_residual():
    net = Net()
    out = net.node("Add", net.product(net.x), net.constant(1))
    assert fused(net, out) == {"QMatMul": 1, "Add": 1}
    net = Net()
    column = net.product(net.x, 1)
    assert fused(net, net.node("Add", net.product(net.x), column)) == {"QMatMul": 2, "Add": 1}


def test_products_of_floats_with_and_without_a_bias_have_bodies_of_their_own():
    net = Net()
    first = net.node("Add", net.product(net.x), net.constant(WIDTH))
    second = net.product(net.node("Sigmoid", first))
    model, found = fused_model(net, second)
    assert found == {"QMatMul": 2, "Sigmoid": 1}
    assert [key[2] for key in model.functions] == ["0", "1"]


def test_what_one_body_serves_has_no_overload():
    net = Net()
    model, _ = fused_model(net, net.product(net.product(net.x)))
    assert set(model.functions) == {("paceline", "QMatMul", "")}


@pytest.mark.parametrize("swapped", [False, True])
def test_a_residual_is_added_by_the_product(swapped):
    net = Net()
    pair = [net.x, net.product(net.x)]
    assert fused(net, net.node("Add", *(pair[::-1] if swapped else pair))) == {"QMatMulAdd": 1}


def test_of_two_products_that_are_added_one_takes_the_other():
    net = Net()
    out = net.node("Add", net.product(net.x), net.product(net.node("Sigmoid", net.x)))
    assert fused(net, out) == {"QMatMul": 1, "QMatMulAdd": 1, "Sigmoid": 1}


def test_a_product_that_something_else_reads_keeps_its_sum_apart():
    net = Net()
    product = net.product(net.x)
    outputs = net.node("Add", net.x, product), net.node("Sigmoid", product)
    assert fused(net, *outputs) == {"QMatMul": 1, "Add": 1, "Sigmoid": 1}


def test_a_product_that_the_graph_gives_out_keeps_its_sum_apart():
    net = Net()
    product = net.product(net.x)
    assert fused(net, net.node("Add", net.x, product), product) == {"QMatMul": 1, "Add": 1}


def test_a_norm_is_done_by_every_product_that_reads_it():
    net = Net()
    normed = net.norm(net.x)
    assert fused(net, net.product(normed), net.product(normed, 40)) == {"NormQMatMul": 2}


@pytest.mark.parametrize("other", ["reader", "output"])
def test_a_norm_with_other_readers_stays(other):
    net = Net()
    normed = net.norm(net.x)
    product = net.product(normed)
    more = normed if other == "output" else net.node("Sigmoid", normed)
    found = fused(net, product, more)
    assert found["RMSNormalization"] == 1
    assert found["QMatMul"] == 1


def test_a_norm_whose_product_takes_a_residual_stays():
    net = Net()
    out = net.node("Add", net.x, net.product(net.norm(net.x)))
    assert fused(net, out) == {"RMSNormalization": 1, "QMatMulAdd": 1}


def silu(net, gate):
    return net.node("Mul", gate, net.node("Sigmoid", gate, width=20), width=20)


def gelu(net, gate):
    return net.node("Gelu", gate, width=20)


def gelu_tanh(net, gate):
    return net.node("Gelu", gate, width=20, approximate="tanh")


def gelu_spelt_out(net, gate):
    bent = net.node("Erf", net.node("Div", gate, net.number(np.float32(2**0.5)), width=20), width=20)
    whole = net.node("Add", bent, net.number(np.float32(1)), width=20)
    return net.node("Mul", net.node("Mul", gate, net.number(np.float32(0.5)), width=20), whole, width=20)


def gelu_tanh_spelt_out(net, gate):
    cube = net.node("Pow", gate, net.number(np.float32(3)), width=20)
    inner = net.node("Add", gate, net.node("Mul", cube, net.number(np.float32(0.044715)), width=20), width=20)
    bent = net.node(
        "Tanh", net.node("Mul", inner, net.number(np.float32((2 / np.pi) ** 0.5)), width=20), width=20
    )
    half = net.node("Mul", gate, net.number(np.float32(0.5)), width=20)
    return net.node("Mul", half, net.node("Add", bent, net.number(np.float32(1)), width=20), width=20)


@pytest.mark.parametrize("activation", [silu, gelu, gelu_tanh, gelu_spelt_out, gelu_tanh_spelt_out])
@pytest.mark.parametrize("swapped", [False, True])
def test_gate_and_up_become_one_operator(activation, swapped):
    net = Net()
    gate, up = net.gates()
    pair = [activation(net, gate), up]
    out = net.node("Mul", *(pair[::-1] if swapped else pair), width=20)
    assert fused(net, out) == {"QMatMulGlu": 1}


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Relu"])
def test_an_activation_without_an_operator_stays(op):
    net = Net()
    gate, up = net.gates()
    found = fused(net, net.node("Mul", net.node(op, gate, width=20), up, width=20))
    assert found == {"QMatMul": 1, "Split": 1, op: 1, "Mul": 1}


def test_a_gate_behind_up_stays():
    net = Net()
    up, gate = net.gates()
    assert fused(net, net.node("Mul", silu(net, gate), up, width=20))["QMatMul"] == 1


def test_every_activation_has_a_body_of_its_own():
    net = Net()
    outputs = []
    for kind in (silu, gelu, silu):
        gate, up = net.gates()
        outputs.append(net.node("Mul", kind(net, gate), up, width=20))
    model, found = fused_model(net, *outputs)
    assert found == {"QMatMulGlu": 3}
    assert [node.overload for node in model.graph] == ["0", "1", "0"]
    assert set(model.functions) == {("paceline", "QMatMulGlu", number) for number in "01"}


def test_only_rows_that_are_kept_are_normed():
    net = Net()
    flat = net.node("Squeeze", net.norm(net.x), net.number(np.array([0])), shape=["T", WIDTH])
    rows = net.node("Gather", flat, net.number(np.array([1, 3])), shape=[2, WIDTH], axis=0)
    out = net.node("MatMul", rows, net.constant(WIDTH, 40), shape=[2, 40])
    assert fused(net, out) == {"Squeeze": 1, "Gather": 1, "NormQMatMul": 1}


def test_a_whole_gated_layer_is_two_nodes():
    net = Net()
    split = net.node("Split", net.product(net.norm(net.x), 40), width=20, outputs=2, axis=-1, num_outputs=2)
    inner = net.node("Mul", silu(net, split[0]), split[1], width=20)
    out = net.node("Add", net.x, net.product(inner))
    assert fused(net, out) == {"NormQMatMulGlu": 1, "QMatMulAdd": 1}
