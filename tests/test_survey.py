"""The reader of ONNX files sees what onnx's own parser sees, or refuses the file: honest, damaged or forged."""
# ruff: noqa: E402  (onnx may be absent)

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from paceline.embedded import embedded_bundle
from paceline.runtime.bundle.survey import LARGEST, Survey, survey
from paceline.runtime.bundle.wire import BYTES, MANY, NUMBER, Message, Reader, WireError

pytestmark = pytest.mark.export

Seen = dict[str, Any]
FUZZ = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = st.sampled_from(["", "a", "b", "w", "Äß", "x" * 300])
OPERATORS = st.sampled_from(["Add", "Gather", "Loop", "Constant", "QMatMul", "EPContext"])
OVERLOADS = st.sampled_from(["", "0", "1", "x" * 300])
DOMAINS = st.sampled_from(["", "paceline", "com.microsoft", "evil"])


def seen_by_onnx(model: onnx.ModelProto) -> Seen:
    """What matters about a model. `odd` holds what no survey may leave out silently."""
    odd: list[str] = []
    constants: list[tuple[Any, ...]] = []

    def tensor(t: onnx.TensorProto) -> tuple[Any, ...]:
        outside = t.data_location == TensorProto.EXTERNAL or len(t.external_data) > 0
        place = tuple((e.key, e.value) for e in t.external_data) if outside else None
        return t.name, t.data_type, tuple(t.dims), place and tuple(sorted(place))

    def sparse(s: onnx.SparseTensorProto) -> None:
        odd.append("sparse")

    def attribute(a: onnx.AttributeProto) -> None:
        if a.HasField("t"):
            constants.append(tensor(a.t))
        odd.extend("tensors" for _ in a.tensors)
        odd.extend("graph" for _ in range(len(a.graphs) + a.HasField("g")))
        for one in [*a.sparse_tensors, *([a.sparse_tensor] if a.HasField("sparse_tensor") else [])]:
            sparse(one)

    def node(n: onnx.NodeProto) -> tuple[Any, ...]:
        for a in n.attribute:
            attribute(a)
        return n.domain, n.op_type, tuple(n.input), tuple(n.output), n.overload

    nodes = [node(n) for n in model.graph.node]
    functions = {}
    for f in model.functions:
        functions[f.domain, f.name, f.overload] = [node(n) for n in f.node]
        for a in f.attribute_proto:
            attribute(a)
    for one in model.graph.sparse_initializer:
        sparse(one)
    odd.extend("training" for _ in model.training_info)
    return {
        "nodes": nodes,
        "functions": functions,
        "initializers": [tensor(t) for t in model.graph.initializer],
        "constants": sorted(constants, key=repr),
        "inputs": [v.name for v in model.graph.input],
        "imports": {o.domain for m in (model, *model.functions) for o in m.opset_import},
        "odd": odd,
    }


def seen_by_us(found: Survey) -> Seen:
    def tensor(t: Any) -> tuple[Any, ...]:
        place = t.place and tuple(
            sorted(
                {
                    "location": t.place.location,
                    "offset": str(t.place.offset),
                    "length": str(t.place.length),
                }.items()
            )
        )
        return t.name, t.kind, t.shape, place

    def node(n: Any) -> tuple[Any, ...]:
        return *n.operator, n.inputs, n.outputs, n.overload

    return {
        "nodes": [node(n) for n in found.nodes],
        "functions": {key: [node(n) for n in body.nodes] for key, body in found.functions.items()},
        "initializers": [tensor(t) for t in found.initializers.values()],
        "constants": sorted((tensor(t) for t in found.constants), key=repr),
        "inputs": found.inputs,
        "imports": found.imports,
        "odd": [],
    }


def agree(raw: bytes) -> bool:
    """Whether the survey took these bytes; then it must have seen what onnx sees."""
    try:
        ours = survey(raw)
    except WireError:
        return False
    try:
        theirs = onnx.load_model_from_string(raw)
    except DecodeError:
        return True  # such bytes nobody runs
    assert seen_by_us(ours) == seen_by_onnx(theirs)
    return True


@st.composite
def tensors(draw: st.DrawFn, honest: bool) -> onnx.TensorProto:
    name = draw(NAMES)
    how = draw(st.sampled_from(["raw", "outside"] if honest else ["raw", "outside", "text", "forged"]))
    if how == "raw":
        kind = draw(st.sampled_from([np.float32, np.int8, np.int64, np.float16, np.bool_]))
        return numpy_helper.from_array(
            np.zeros(draw(st.sampled_from([(), (0,), (3,), (2, 200)])), kind), name
        )
    if how == "text":
        return helper.make_tensor(name, TensorProto.STRING, [1], [b"x"])
    t = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "m.data"), ("offset", "64"), ("length", "24")):
        t.external_data.add(key=key, value=value)
    if how == "forged":
        t.data_location = draw(st.sampled_from([TensorProto.DEFAULT, TensorProto.EXTERNAL]))
        t.external_data.add(key=draw(st.sampled_from(["location", "checksum"])), value="/etc/passwd")
    return t


@st.composite
def nodes(draw: st.DrawFn, honest: bool, deep: int = 2) -> onnx.NodeProto:
    inputs = draw(st.lists(NAMES, max_size=3))
    made = helper.make_node(draw(OPERATORS), inputs, ["y"], domain=draw(DOMAINS), overload=draw(OVERLOADS))
    kinds = ["i", "f", "s", "ints", "floats", "t"]
    for number, kind in enumerate(
        draw(st.lists(st.sampled_from(kinds if honest else [*kinds, "g", "ts", "sparse"]), max_size=3))
    ):
        a = made.attribute.add(name=f"a{number}")
        if kind == "i":
            a.i, a.type = draw(st.integers(-(2**63), 2**63 - 1)), onnx.AttributeProto.INT
        elif kind == "f":
            a.f = 0.5
        elif kind == "s":
            a.s = b"\xff\x00"
        elif kind == "ints":
            a.ints.extend(draw(st.lists(st.integers(-5, 2**40), max_size=3)))
        elif kind == "floats":
            a.floats.extend([1.0, 2.0])
        elif kind == "t":
            inner = draw(tensors(honest))
            if honest and inner.external_data:
                continue
            a.t.CopyFrom(inner)
        elif kind == "ts":
            a.tensors.append(draw(tensors(honest)))
        elif kind == "sparse":
            a.sparse_tensor.values.CopyFrom(draw(tensors(honest)))
        elif kind == "g" and deep:
            a.g.node.append(draw(nodes(honest, deep - 1)))
    return made


@st.composite
def models(draw: st.DrawFn, honest: bool = False) -> onnx.ModelProto:
    """A model that a serialiser can write; `honest` ones hold nothing that is refused."""
    found = draw(st.lists(tensors(honest), max_size=4, unique_by=lambda t: t.name))
    if honest:
        found = [t for t in found if t.name]
    names = {t.name for t in found}
    inputs = [n for n in draw(st.lists(NAMES, max_size=2)) if not honest or n not in names]
    graph = helper.make_graph(
        draw(st.lists(nodes(honest), max_size=4)),
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["T", 4]) for n in inputs],
        [],
        found,
        doc_string="text",
    )
    keys = st.tuples(DOMAINS, st.sampled_from("FG"), OVERLOADS)
    functions = []
    for domain, name, overload in draw(st.lists(keys, max_size=3, unique=True)):
        inner = draw(st.lists(nodes(honest), max_size=2))
        functions.append(helper.make_function(domain, name, "x", "y", inner, [], overload=overload))
    if not honest and draw(st.booleans()):
        graph.sparse_initializer.add()
    return helper.make_model(graph, functions=functions, ir_version=10)


@FUZZ
@given(models(honest=True))
def test_honest_models_are_seen_as_onnx_sees_them(model: onnx.ModelProto) -> None:
    assert agree(model.SerializeToString())


@FUZZ
@given(models())
def test_of_any_model_nothing_is_left_out_silently(model: onnx.ModelProto) -> None:
    agree(model.SerializeToString())


def varint(value: int, wasted: int = 0) -> bytes:
    """A number; `wasted` bytes more than it needs."""
    out = []
    while value >= 128 or wasted:
        out.append(value & 127 | 128)
        wasted -= value < 128
        value >>= 7
    return bytes([*out, value])


def split(raw: bytes) -> list[tuple[int, int, bytes]] | None:
    """(number, wire type, value with its length left off) of every field; None if these bytes are no message."""
    at, found = 0, []

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (raw[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if raw[at - 1] < 128:
                return value

    try:
        while at < len(raw):
            key = number()
            start = at
            if key & 7 == 0:
                number()
            elif key & 7 == 2:
                size = number()
                start, at = at, at + size
            elif key & 7 in (1, 5):
                at += 8 if key & 7 == 1 else 4
            else:
                return None
            if key < 8 or at > len(raw):
                return None
            found.append((key >> 3, key & 7, raw[start:at]))
    except IndexError:
        return None
    return found


def joined(parts: list[tuple[int, int, bytes]]) -> bytes:
    return b"".join(field(*part) for part in parts)


def field(number: int, wire: int, value: bytes) -> bytes:
    return varint(number << 3 | wire) + (varint(len(value)) if wire == 2 else b"") + value


def forged(raw: bytes, draw: st.DrawFn) -> bytes:
    """Go down to some field of some message and write something about it in an unusual way."""
    parts = split(raw)
    if not parts:
        return raw + draw(st.binary(max_size=3))
    at = draw(st.integers(0, len(parts) - 1))
    number, wire, value = parts[at]
    if wire == 2 and split(value) and draw(st.integers(0, 3)):
        parts[at] = number, wire, forged(value, draw)
        return joined(parts)
    before, after = joined(parts[:at]), joined(parts[at + 1 :])
    whole = field(number, wire, value)
    other = draw(st.sampled_from(parts))
    far = draw(st.integers(1, 30))
    return draw(
        st.sampled_from(
            [
                before + whole + whole + after,
                before + after + whole,
                before + after,
                before + field(number, *other[1:]) + whole + after,
                before + whole + field(number, *other[1:]) + after,
                before + field(other[0], wire, value) + whole + after,
                before + varint(number << 3 | wire, 1) + field(number, wire, value)[1:] + after,
                before + varint(number << 3 | wire | 1 << 32) + field(number, wire, value)[1:] + after,
                before + varint(number << 3 | 3) + whole + varint(number << 3 | 4) + after,
                before + varint(far << 3 | 3) + whole + varint(far << 3 | 4) + after,
                before + field(far, 2, whole) + after,
                before + field(far, 0, varint(draw(st.integers(0, 2**64 - 1)))) + whole + after,
                before + field(number, 0, varint(draw(st.integers(0, 2**35)))) + after,
                before + field(number, 0, varint(1, draw(st.integers(1, 12)))) + after,
                before + field(number, 2, value + draw(st.binary(max_size=4))) + after,
                before + field(number, 5, b"\0\0\0\1") + whole + after,
                whole + before + after,
            ]
        )
    )


@FUZZ
@given(st.data())
def test_whatever_is_forged_we_see_what_onnx_sees_or_refuse(data: st.DataObject) -> None:
    raw = data.draw(models(honest=data.draw(st.booleans()))).SerializeToString()
    for _ in range(data.draw(st.integers(1, 4))):
        raw = forged(raw, data.draw)
    agree(raw)


@FUZZ
@given(st.data())
def test_whatever_bytes_change_we_see_what_onnx_sees_or_refuse(data: st.DataObject) -> None:
    raw = bytearray(data.draw(models(honest=True)).SerializeToString())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        how = data.draw(st.sampled_from(["set", "flip", "insert", "cut", "end"]))
        if how == "set":
            raw[at] = data.draw(st.integers(0, 255))
        elif how == "flip":
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "insert":
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=6))
        elif len(raw) > 8:
            del raw[at : at + 3 if how == "cut" else None]
        if not raw:
            return
    agree(bytes(raw))


def graphs() -> Iterator[bytes]:
    yield from (path.read_bytes() for path in sorted(embedded_bundle().glob("**/*.onnx")))


def test_the_graphs_of_the_storyteller_are_seen_whole() -> None:
    for raw in graphs():
        assert agree(raw)
        found = survey(raw)
        assert found.nodes
        assert found.functions
        assert found.initializers


def honest() -> bytes:
    w = numpy_helper.from_array(np.zeros((2, 300), np.float32), "w")
    graph = helper.make_graph([helper.make_node("Gather", ["w", "i"], ["y"], axis=0)], "g", [], [], [w])
    made: bytes = helper.make_model(graph, ir_version=10).SerializeToString()
    return made


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (lambda raw: raw, "twice"),  # two models behind each other are merged by other readers
        (lambda raw: field(7, 2, b""), "twice"),
        (lambda raw: field(1, 0, b"\x0b"), "twice"),
        (lambda raw: field(99, 0, b"\0"), "number 99"),
        (lambda raw: field(0, 0, b"\0"), "number 0"),
        (lambda raw: varint(14 << 3 | 3) + varint(14 << 3 | 4), "wrong type"),
        (lambda raw: field(14, 0, b"\1"), "wrong type"),
        (lambda raw: varint(14 << 3 | 2, 1) + b"\0", "another form"),
        (lambda raw: varint((14 << 3 | 2) + (1 << 32)) + b"\0", "number"),
        (lambda raw: b"\xff" * 9 + b"\x7f", "another form"),
        (lambda raw: b"\xff" * 11, "ten bytes"),
        (lambda raw: b"\xff", "cut off"),
        (lambda raw: varint(14 << 3 | 2) + b"\x05abc", "cut off"),
        (lambda raw: varint(14 << 3 | 2) + varint(2**63), "cut off"),
    ],
)
def test_what_no_serialiser_writes_is_refused(more: Any, word: str) -> None:
    raw = honest()
    assert agree(raw)
    with pytest.raises(WireError, match=word):
        survey(raw + more(raw))


def test_numbers_are_read_packed_and_one_by_one() -> None:
    message = Message("thing", {1: MANY + NUMBER, 2: BYTES}, {})
    raw = field(1, 0, varint(7)) + field(1, 2, varint(300) + varint(2**64 - 1)) + field(1, 0, varint(0))
    reader = Reader(raw, 99)
    assert reader.numbers(reader.fields((0, len(raw)), message)[1]) == [7, 300, -1, 0]


@pytest.mark.parametrize(
    "raw",
    [
        field(7, 2, field(1, 2, b"") * 1_000_000),
        field(7, 2, field(5, 2, field(1, 2, bytes(2_000_000)) + field(2, 0, b"\1") + field(8, 2, b"w"))),
        bytes(LARGEST + 1),
    ],
    ids=["nodes", "dimensions", "size"],
)
def test_time_is_bounded_whatever_the_file_holds(raw: bytes) -> None:
    begun = time.process_time()
    with pytest.raises(WireError, match="more"):
        survey(raw)
    assert time.process_time() - begun < 30
