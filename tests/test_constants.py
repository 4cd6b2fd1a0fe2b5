"""What is followed of constants is never less than what they really become, and honest bodies stay within the bound."""
# ruff: noqa: E402  (onnx may be absent)

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from test_admission import bodies

from paceline.runtime.bundle.constants import follow_constants
from paceline.runtime.bundle.survey import survey
from paceline.runtime.bundle.wire import WireError

pytestmark = pytest.mark.export

_TWO = ("Add", "Mul", "Sub", "Div", "BitwiseAnd", "BitwiseOr", "Min")


def random_graph(draw: random.Random) -> onnx.ModelProto:
    """Some thirty operators over small constants of int64; most of their shapes are sizes computed of others."""
    names = [f"c{i}" for i in range(6)]
    constants = [
        numpy_helper.from_array(
            np.array(draw.choices((1, 2, 3, -1), k=draw.choice((1, 2, 3))), np.int64).reshape(
                draw.choice(((-1,), (1, -1), (-1, 1)))
            ),
            name,
        )
        for name in names[:4]
    ]
    constants += [numpy_helper.from_array(np.arange(12, dtype=np.int64).reshape(3, 4), names[4])]
    constants += [numpy_helper.from_array(np.ones((4, 1), np.int64), names[5])]
    nodes = []
    for i in range(30):
        a, b, out = draw.choice(names), draw.choice(names), f"n{i}"
        kind = draw.choice(
            (
                "two",
                "two",
                "Reshape",
                "Shape",
                "Concat",
                "Transpose",
                "Expand",
                "Slice",
                "Split",
                "Unsqueeze",
                "Cast",
            )
        )
        outputs = [out]
        if kind == "two":
            node = helper.make_node(draw.choice(_TWO), [a, b], outputs)
        elif kind in ("Reshape", "Expand"):
            node = helper.make_node(kind, [a, b], outputs)
        elif kind == "Concat":
            node = helper.make_node(kind, [a, b], outputs, axis=draw.choice((0, -1, 1)))
        elif kind == "Transpose":
            node = helper.make_node(kind, [a], outputs, **draw.choice(({}, {"perm": [1, 0]})))
        elif kind == "Slice":
            node = helper.make_node(kind, [a, "zero", "one"], outputs)
        elif kind == "Split":
            outputs = [out, f"{out}.b"]
            if draw.random() < 0.5:
                node = helper.make_node(kind, [a, b], outputs, axis=0)
            else:
                node = helper.make_node(kind, [a], outputs, axis=0, num_outputs=2)
        elif kind == "Unsqueeze":
            node = helper.make_node(kind, [a, draw.choice(("zero", "one"))], outputs)
        elif kind == "Shape":
            node = helper.make_node(
                kind, [a], outputs, **draw.choice(({}, {"start": 1}, {"start": 0, "end": 1}))
            )
        else:
            node = helper.make_node(kind, [a], outputs, to=TensorProto.INT64)
        nodes.append(node)
        names += outputs
    constants += [
        numpy_helper.from_array(np.array([n], np.int64), name) for name, n in (("zero", 0), ("one", 1))
    ]
    graph = helper.make_graph(nodes, "g", [], [], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Every value; operators that fail, or would read a large one, are taken out of the model."""
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        fed = {name: values[name] for name in node.input if name in values}
        if not set(node.input) <= fed.keys() or sum(v.size for v in fed.values()) > 4096:
            continue
        inputs, outputs = (
            [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in names]
            for names in (fed, node.output)
        )
        graph = helper.make_graph([node], "g", inputs, outputs)
        one = helper.make_model(graph, opset_imports=model.opset_import, ir_version=10)
        try:
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(one).run(None, fed)
        except Exception:
            continue
        values.update(zip(node.output, results, strict=True))
        model.graph.node.append(node)
    return values


def test_nothing_becomes_larger_than_what_was_followed() -> None:
    compared = 0
    for seed in range(300):
        model = random_graph(random.Random(seed))
        values = run(model)
        nodes = list(model.graph.node)
        for length in range(1, len(nodes) + 1):
            del model.graph.node[:]
            model.graph.node.extend(nodes[:length])
            try:
                found = follow_constants(survey(model.SerializeToString()))
            except WireError:  # what is expanded to no size that is known
                nodes[length - 1] = helper.make_node("Identity", ["zero"], ["nothing"])
                continue
            for name in nodes[length - 1].output:
                if name in values and name in found:
                    compared += 1
                    said = found[name]
                    assert values[name].size <= said.count, (seed, name)
                    assert not said.exact or said.shape in (None, values[name].shape), (seed, name)
                    assert said.numbers is None or said.numbers == tuple(values[name].flat), (seed, name)
    assert compared > 1000


def products(k: int, n: int, times: int = 1) -> Iterator[onnx.ModelProto]:
    """A graph for every body that reads weights, which calls it so often with the same ones."""
    for body in bodies():
        if "weights" not in body.input:
            continue
        model = helper.make_model(helper.make_graph([], "g", [], []), functions=[body], ir_version=10)
        steps = {name for node in body.node for name in node.output}
        block = k if "apart_scales" in steps else 32
        bits = 4 if steps & {"x_eights", "even_low", "low"} else 8 if "lanes" in steps else 16
        for node in body.node:
            if node.output[0] == "unit_shape":
                bits = 5 if 5 in node.attribute[0].ints else 6
        tiles, item = -(-n // 16), TensorProto.FLOAT16 if bits == 16 else TensorProto.UINT8
        shape = (tiles, k, 16) if bits == 16 else (tiles, k * bits // 32, 64)
        weights = TensorProto(name="weights", data_type=item, dims=shape, data_location=TensorProto.EXTERNAL)
        place = {"location": "d", "offset": 0, "length": int(np.prod(shape)) * (2 if bits == 16 else 1)}
        for key, value in place.items():
            weights.external_data.add(key=key, value=str(value))
        columns = 32 if "minima" in steps else 16
        scales = numpy_helper.from_array(np.ones((tiles, k // block, columns), np.float16), "scales")
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.initializer.extend([weights, scales])
        given = [name if name in ("weights", "scales") else f"in.{name}" for name in body.input]
        sizes = {"K": k, "N": n, "bits": bits, "block_size": block}
        for call in range(times):
            node = helper.make_node(body.name, given, [f"y{call}"], domain=body.domain, **sizes)
            model.graph.node.append(node)
        yield model


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param((168, 88), marks=pytest.mark.slow),
        pytest.param((172, 66), marks=pytest.mark.slow),
        (8, 16),
    ],
)
def test_every_body_of_the_exporter_stays_within_the_bound(rows: tuple[int, int]) -> None:
    k, n = (64 * size for size in rows)
    for model in products(k, n):
        follow_constants(survey(model.SerializeToString()))


def test_a_draft_of_several_levels_may_make_as_much_of_its_weights_at_each() -> None:
    refused = 0
    for model in products(1024, 1024, times=8):
        found = survey(model.SerializeToString())
        follow_constants(found, 8)
        try:
            follow_constants(found)
        except WireError:
            refused += 1
    assert refused
