"""ONNX Runtime sees no graph but such as the exporter writes, over the weights that the manifest lists."""
# ruff: noqa: E402  (onnx may be absent)

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from external_graph import write_graph
from onnx import TensorProto, helper, numpy_helper

from paceline.embedded import embedded_bundle
from paceline.export.bodies_attention import (
    Heads,
    RotaryForm,
    rotary_attention_function,
    tree_attention_function,
)
from paceline.export.bodies_embedding import embedding_function
from paceline.export.bodies_matmul import Form, product_function
from paceline.runtime.bundle.admission import BODY_OPERATORS, GRAPH_OPERATORS, admit
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.manifest import BundleError, Part, Weight
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.passes import Bound
from paceline.runtime.ops.packed_matmul import ACTIVATIONS, PRODUCTS

pytestmark = pytest.mark.export

CPU = find_device("cpu")
SIZE = 6 * 4096
Edit = Callable[[onnx.ModelProto], object]


@pytest.fixture
def gather(tmp_path: Path) -> tuple[Path, Part]:
    """A graph of one node that reads one listed weight of 96 KiB."""
    node = helper.make_node("Gather", ["w", "ids"], ["y"])
    path = tmp_path / "model.onnx"
    table = np.arange(SIZE, dtype=np.float32).reshape(6, 4096)
    listed = write_graph(path, node, {"ids": TensorProto.INT64}, {"w": table})
    part = msgspec.structs.replace(
        open_bundle(embedded_bundle()).manifest.target, graph="target/model.onnx", weights=listed
    )
    return path, part


def edited(path: Path, edit: Edit) -> None:
    model = onnx.load(path, load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString())


def refused(path: Path, part: Part, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        Graph(path, CPU, 1, part)
    message = str(caught.value)
    assert message.isprintable()
    for word in (path.name, *words):
        assert word in message, message


def test_a_graph_over_the_weights_that_are_listed_runs(gather: tuple[Path, Part]) -> None:
    graph = Graph(gather[0], CPU, 1, gather[1])
    y = np.zeros((1, 4096), np.float32)
    Bound(graph, {"ids": np.array([2])}, {"y": y}).run()
    assert y[0, 0] == 2 * 4096


@pytest.mark.parametrize(
    "listed",
    [
        Weight("float16", [6, 4096], 0),
        Weight("int8", [6, 4096], 0),
        Weight("bfloat16", [6, 4096], 0),
        Weight("float32", [6, 2048], 0),
        Weight("float32", [4096, 6], 0),
        Weight("float32", [SIZE], 0),
        Weight("float32", [6, 4096], 64),
    ],
)
def test_a_table_that_says_another_thing_than_the_graph_is_refused(
    gather: tuple[Path, Part], listed: Weight
) -> None:
    path, part = gather
    refused(path, msgspec.structs.replace(part, weights={"w": listed}), "'w'", "than the manifest")


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8, TensorProto.FLOAT16])
def test_a_graph_that_declares_a_smaller_type_than_the_table_is_refused(
    gather: tuple[Path, Part], kind: int
) -> None:
    def narrower(model: onnx.ModelProto) -> None:
        [tensor] = model.graph.initializer
        tensor.data_type = kind
        next(e for e in tensor.external_data if e.key == "length").value = str(
            SIZE * (2 if kind == TensorProto.FLOAT16 else 1)
        )

    edited(gather[0], narrower)
    refused(*gather, "'w'", "than the manifest")


def test_a_weight_that_the_graph_has_not_or_has_in_itself_is_refused(gather: tuple[Path, Part]) -> None:
    path, part = gather
    more = {**part.weights, "v": Weight("float32", [4], 1 << 20)}
    refused(path, msgspec.structs.replace(part, weights=more), "'v'")
    inside = numpy_helper.from_array(np.zeros((6, 4096), np.float32), "w")
    edited(path, lambda m: m.graph.initializer[0].CopyFrom(inside))
    refused(path, part, "'w'")


def place(**changes: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        [tensor] = model.graph.initializer
        known = {entry.key: entry.value for entry in tensor.external_data} | changes
        del tensor.external_data[:]
        for key, value in known.items():
            if value:
                tensor.external_data.add(key=key, value=value)

    return edit


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (place(location="other.data"), "'other.data'"),
        (place(location=".DS_Store"), ".DS_Store"),
        (place(location="../model.onnx.data"), "not in 'model.onnx.data'"),
        (place(location="./model.onnx.data"), "not in 'model.onnx.data'"),
        (place(location="/etc/passwd"), "/etc/passwd"),
        (place(location="*/_ORT_MEM_ADDR_/*"), "_ORT_MEM_ADDR_"),
        (place(location=""), "where the tensor"),
        (place(length=""), "where the tensor"),
        (place(offset=""), "where the tensor"),
        (place(offset="0x0"), "where the tensor"),
        (place(offset="-64"), "where the tensor"),
        (place(offset=" 0"), "where the tensor"),
        (place(length=str(4 * SIZE - 4)), "its shape does not give"),
        (place(checksum="x"), "checksum"),
        (lambda m: m.graph.initializer[0].external_data.add(key="location", value="x"), "location"),
        (lambda m: m.graph.initializer[0].ClearField("data_location"), "two ways"),
        (lambda m: m.graph.initializer[0].ClearField("external_data"), "two ways"),
        (lambda m: setattr(m.graph.initializer[0], "raw_data", b"1234"), "stands elsewhere"),
        (lambda m: m.graph.initializer[0].dims.append(-1), "type or shape"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.STRING), "type or shape"),
    ],
)
def test_weights_are_read_from_the_parts_own_file_alone(
    gather: tuple[Path, Part], edit: Edit, word: str
) -> None:
    edited(gather[0], edit)
    refused(gather[0], msgspec.structs.replace(gather[1], weights={}), word)


def node(op: str, domain: str = "", inputs: tuple[str, ...] = ("ids",), **attributes: object) -> Edit:
    return lambda m: m.graph.node.append(helper.make_node(op, inputs, ["extra"], domain=domain, **attributes))


def _graph() -> onnx.GraphProto:
    return helper.make_graph([], "inner", [], [])


def _outside(name: str = "") -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "model.onnx.data"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _sparse() -> onnx.SparseTensorProto:
    one = numpy_helper.from_array(np.ones(1, np.float32), "s")
    return helper.make_sparse_tensor(one, numpy_helper.from_array(np.zeros(1, np.int64)), [4])


def function(name: str, domain: str, *nodes: onnx.NodeProto) -> Edit:
    imports = [helper.make_opsetid("", 23)]
    return lambda m: m.functions.append(
        helper.make_function(domain, name, ["x"], ["y"], list(nodes), imports)
    )


def overloaded(of_node: str, of_function: str) -> Edit:
    """A product and a body, of these overloads."""

    def edit(model: onnx.ModelProto) -> None:
        node("QMatMul", "paceline", overload=of_node)(model)
        function("QMatMul", "paceline")(model)
        model.functions[0].overload = of_function

    return edit


def doubled(overload: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        overloaded(overload, overload)(model)
        model.functions.append(model.functions[0])

    return edit


def test_a_node_has_the_body_of_its_overload(gather: tuple[Path, Part]) -> None:
    path, part = gather
    edited(path, overloaded("1", "1"))
    admit(path.read_bytes(), part, path)


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (node("If", then_branch=_graph(), else_branch=_graph()), "a graph inside a node"),
        (node("Loop", body=_graph()), "a graph inside a node"),
        (node("Scan", body=_graph(), num_scan_inputs=1), "a graph inside a node"),
        (node("Add", anything=_graph()), "a graph inside a node"),
        (node("Add", anything=[_graph(), _graph()]), "a graph inside a node"),
        (node("Loop"), "'Loop'"),
        (node("ConstantOfShape"), "'ConstantOfShape'"),
        (node("Range"), "'Range'"),
        (node("Tile"), "'Tile'"),
        (node("Resize"), "'Resize'"),
        (node("Constant", value=_outside()), "constant of a node in another file"),
        (node("Constant", sparse_value=_sparse()), "a sparse tensor"),
        (node("EPContext", "com.microsoft"), "com.microsoft::EPContext"),
        (node("Attention", "com.microsoft"), "com.microsoft::Attention"),
        (node("Add", "ai.onnx"), "ai.onnx::Add"),
        (node("Add", "ai.onnx.ml"), "ai.onnx.ml::Add"),
        (node("QMatMul\0If", "paceline"), "QMatMul"),
        (node("Expand", inputs=("w", "ids")), "expands"),
        (lambda m: m.graph.sparse_initializer.append(_sparse()), "a sparse tensor"),
        (lambda m: m.training_info.add(), "training"),
        (lambda m: setattr(m.graph.node[0], "overload", "1"), "overload"),
        (overloaded("1", "2"), "overload"),
        (overloaded("x", "x"), "overload"),
        (overloaded("12345", "12345"), "overload"),
        (
            function("QMatMul", "paceline", helper.make_node("Mul", ["x", "x"], ["y"], overload="1")),
            "overload",
        ),
        (doubled("1"), "two functions"),
        (lambda m: m.opset_import.append(helper.make_opsetid("evil", 1)), "'evil'"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "two initializers"),
        (lambda m: m.graph.input.append(helper.make_tensor_value_info("w", 1, [6, 4096])), "input too"),
        (function("Gather", ""), "function"),
        (function("Other", "paceline"), "'paceline::Other'"),
        (function("QMatMul", "paceline", helper.make_node("Range", ["x"], ["y"])), "Range"),
        (function("QMatMul", "paceline", helper.make_node("Loop", ["x"], ["y"], body=_graph())), "inside"),
        (
            function("QMatMul", "paceline", helper.make_node("Constant", [], ["y"], value=_outside())),
            "another file",
        ),
        (
            lambda m: m.graph.initializer.append(TensorProto(name="v", data_type=1, dims=[2**40])),
            "its shape does not give",
        ),
        (lambda m: m.ClearField("graph"), "no graph"),
    ],
)
def test_what_the_exporter_never_writes_is_refused(gather: tuple[Path, Part], edit: Edit, word: str) -> None:
    edited(gather[0], edit)
    refused(*gather, word)


def expanding(*sizes: int, rows: tuple[str, ...] = ()) -> Edit:
    """Expand to one constant, or to it behind as many numbers of rows."""

    def edit(model: onnx.ModelProto) -> None:
        graph = model.graph
        graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), "sizes"))
        for i, name in enumerate(rows):
            graph.node.append(helper.make_node("Shape", [name], [f"rows.{i}"]))
        counts = [f"rows.{i}" for i in range(len(rows))]
        if rows:
            graph.node.append(helper.make_node("Concat", [*counts, "sizes"], ["shape"], axis=0))
        graph.node.append(helper.make_node("Expand", ["ids", "shape" if rows else "sizes"], ["extra"]))

    return edit


@pytest.mark.parametrize(
    ("edit", "fine"),
    [
        (expanding(1, 1, 1, 2), True),
        (expanding(4096, rows=("token_ids",)), True),
        (expanding(10**9), False),
        (expanding(2**40, 2**40), False),
        (expanding(-1), False),
        (expanding(4097, rows=("token_ids",)), False),
        (expanding(4, rows=("token_ids", "rows")), False),
        (expanding(4, rows=("cache_k.0",)), False),
    ],
)
def test_values_are_repeated_for_a_row_of_outputs_at_most(
    gather: tuple[Path, Part], edit: Edit, fine: bool
) -> None:
    path, part = gather
    edited(path, edit)
    if fine:
        admit(path.read_bytes(), part, path)
    else:
        refused(path, part, "expands")


def test_a_graph_has_no_more_nodes_than_its_layers_need(gather: tuple[Path, Part]) -> None:
    path, part = gather

    def long(model: onnx.ModelProto) -> None:
        for i in range(128 * 9):
            model.graph.node.append(helper.make_node("Cast", [f"x{i}"], [f"x{i + 1}"], to=1))

    edited(path, long)
    refused(path, part, "1153 nodes", f"{part.layers} layers")
    admit(path.read_bytes(), msgspec.structs.replace(part, layers=9), path)


def test_a_graph_that_looks_like_another_format_is_read_as_what_was_checked(
    gather: tuple[Path, Part],
) -> None:
    """ONNX Runtime would take bytes that have ORTM at the fourth for its own format."""
    path, part = gather
    edited(path, lambda m: setattr(m, "producer_name", "ORTM" + "x" * 40))
    raw = path.read_bytes()
    assert raw[4:8] == b"ORTM"
    graph = Graph(path, CPU, 1, part)
    assert list(graph.inputs) == ["ids"]


def test_bytes_of_another_format_are_refused(gather: tuple[Path, Part]) -> None:
    path, part = gather
    for raw in (b"", b"\x08\x0aORTM", path.read_bytes()[:-1], b"\x1c\x00\x00\x00ORTM" + bytes(60)):
        path.write_bytes(raw)
        refused(path, part)


FORMATS = ((4, False), (4, True), (5, False), (5, True), (6, False), (6, True), (8, False), (16, False))
"""Bits, and whether blocks have minima."""


def bodies() -> Iterator[onnx.FunctionProto]:
    """The body of every operator in every form that the exporter gives it."""
    heads = Heads(4, 2, 8)
    for capped, cache in product((False, True), ("fp32", "fp16", "int8")):
        for some in (None, heads):
            yield tree_attention_function(23, heads=some, capped=capped, cache=cache)
        for normed in (False, True):
            yield rotary_attention_function(23, RotaryForm(heads, 8, normed, capped, cache))
    for bits, minimum in FORMATS:
        yield embedding_function(23, bits, minimum)
    for name, (bits, minimum), flags in product(PRODUCTS, FORMATS, product((False, True), repeat=5)):
        even_k, whole, even_n, exact, biased = flags
        activations = ACTIVATIONS if name.endswith("Glu") else ("",)
        for piece, activation in product((0, 32), activations):
            form = Form(bits, minimum, piece, even_k, whole, even_n, exact, biased, activation)
            yield product_function(name, 23, form)


def test_the_operators_of_bodies_are_those_that_the_exporter_writes() -> None:
    written: dict[str, set[tuple[str, str]]] = {}
    for body in bodies():
        written.setdefault(body.name, set()).update((n.domain, n.op_type) for n in body.node)
    assert written == BODY_OPERATORS
    assert {("paceline", name) for name in written} <= GRAPH_OPERATORS
