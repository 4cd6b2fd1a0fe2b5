"""A graph that asks for more memory than a bundle of its size needs is refused before the memory is filled."""
# ruff: noqa: E402  (onnx may be absent)

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from command_line import copied_bundle
from onnx import TensorProto, helper, numpy_helper

from paceline.runtime.ops.library import VARIABLE

pytestmark = pytest.mark.export

Edit = Callable[[onnx.ModelProto], None]
GRAPH = "target/model.fp16.onnx"
RUN = """
import sys
from paceline.main import main
from paceline.memory.budget import peak_memory
code = main(sys.argv[1:])
print(peak_memory() or 0)
sys.exit(code)
"""


def hostile(tmp_path: Path, edit: Edit) -> Path:
    """A copy of the bundle with another graph, as its maker would list it."""
    folder = copied_bundle(tmp_path)
    path, listed = folder / GRAPH, folder / "manifest.json"
    model = onnx.load(path, load_external_data=False)
    edit(model)
    raw = model.SerializeToString()
    path.write_bytes(raw)
    manifest = json.loads(listed.read_text())
    manifest["files"][GRAPH] |= {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    listed.write_text(json.dumps(manifest))
    return folder


def run(folder: Path, *flags: str, kernels: bool = True) -> tuple[int, str, int]:
    """Exit status, errors and peak bytes of a short answer in a process of its own."""
    arguments = ["run", "-b", str(folder), "--drafter", "none", "--max-tokens", "4", *flags, "A cat"]
    env = os.environ if kernels else {**os.environ, VARIABLE: "none"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr, int(done.stdout.splitlines()[-1])


def constant(model: onnx.ModelProto, name: str, *values: int) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name


def column_and_row(model: onnx.ModelProto, size: int) -> tuple[str, str]:
    for name, shape in (("column", (size, 1)), ("row", (1, size))):
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
    return "column", "row"


def use(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], large: str) -> None:
    """Add a small part of `large`, a matrix, to the first number of each row's angles."""
    at = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Cos")
    angles, axes = model.graph.node[at].input[0], constant(model, "evil.axes", 0, 1)
    none, one = constant(model, "evil.none", 0, 0), constant(model, "evil.one", 1, 1)
    more = [
        helper.make_node("Slice", [large, none, one, axes], ["evil.part"]),
        helper.make_node("Add", [angles, "evil.part"], ["evil.angles"]),
    ]
    model.graph.node[at].input[0] = "evil.angles"
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*rest[:at], *nodes, *more, *rest[at:]])


def outer(operator: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        use(model, [helper.make_node(operator, column_and_row(model, 20_000), ["large"])], "large")

    return edit


def outer_of_an_input(model: onnx.ModelProto) -> None:
    """What is no constant: the positions take part in it."""
    column, row = column_and_row(model, 20_000)
    nodes = [
        helper.make_node("Slice", ["positions", constant(model, "a", 0), constant(model, "b", 1)], ["first"]),
        helper.make_node("Cast", ["first"], ["number"], to=1),
        helper.make_node("Add", [column, "number"], ["moved"]),
        helper.make_node("Add", ["moved", row], ["large"]),
    ]
    use(model, nodes, "large")


def doubled(model: onnx.ModelProto) -> None:
    nodes = [helper.make_node("Cast", ["token_ids"], ["double.0"], to=1)]
    nodes += [helper.make_node("Concat", [f"double.{i}"] * 2, [f"double.{i + 1}"], axis=0) for i in range(29)]
    nodes.append(helper.make_node("Unsqueeze", ["double.29", constant(model, "zero", 0)], ["large"]))
    use(model, nodes, "large")


def in_attention(operator: str) -> Edit:
    """Range of constants; or Tile of an output, of which the start is taken."""

    def number(name: str, value: object) -> onnx.NodeProto:
        tensor = numpy_helper.from_array(np.array(value, np.int64))
        return helper.make_node("Constant", [], [name], value=tensor)

    def edit(model: onnx.ModelProto) -> None:
        body = next(f for f in model.functions if f.name == "RotaryTreeAttention")
        if operator == "Range":
            numbers = [number(f"evil.{i}", value) for i, value in enumerate((0, 10**9, 1))]
            node = helper.make_node("Range", ["evil.0", "evil.1", "evil.2"], ["evil"])
            body.node.extend([*numbers, node])
            return
        out = body.output[0]
        maker = next(node for node in body.node if out in node.output)
        maker.output[list(maker.output).index(out)] = "evil.out"
        calls = [node for node in model.graph.node if node.op_type == body.name]
        heads = next(a.i for a in calls[0].attribute if a.name == "q_heads")
        ends = [number("evil.none", [0]), number("evil.width", [64 * heads]), number("evil.last", [-1])]
        body.node.extend(
            [
                number("evil.times", [1, 1, 500_000]),
                *ends,
                helper.make_node("Tile", ["evil.out", "evil.times"], ["evil.large"]),
                helper.make_node("Slice", ["evil.large", "evil.none", "evil.width", "evil.last"], [out]),
            ]
        )

    return edit


@pytest.mark.parametrize("operator", ["Add", "MatMul"])
def test_a_large_value_of_constants_alone_is_refused(tmp_path: Path, operator: str) -> None:
    code, error, peak = run(hostile(tmp_path, outer(operator)))
    assert code == 1
    assert f"{GRAPH} makes 400000000 values of constants alone" in error
    assert peak < 300_000_000


def many(model: onnx.ModelProto) -> None:
    """Sixty values, none of them larger than the largest weight."""
    weight = max(model.graph.initializer, key=lambda t: np.prod(t.dims)).name
    nodes = [helper.make_node("Cast", [weight], ["wide"], to=TensorProto.INT64)]
    for i in range(60):
        nodes.append(
            helper.make_node(
                "Add", ["wide" if not i else f"wide.{i}", constant(model, f"one.{i}", i)], [f"wide.{i + 1}"]
            )
        )
    shape = constant(model, "flat", -1)
    nodes.append(helper.make_node("Reshape", ["wide.60", shape], ["row"]))
    nodes.append(helper.make_node("Unsqueeze", ["row", constant(model, "nought", 0)], ["large"]))
    use(model, nodes, "large")


def in_product(model: onnx.ModelProto) -> None:
    """The body multiplies a row by a column of its weights, which are constants of the call."""
    body = next(f for f in model.functions if f.name == "QMatMulAdd")

    def numbers(name: str, *values: int) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value_ints=list(values))

    out = body.output[0]
    maker = next(node for node in body.node if out in node.output)
    maker.output[list(maker.output).index(out)] = "evil.out"
    body.node.extend(
        [
            *(
                numbers("evil.row", 1, -1),
                numbers("evil.column", -1, 1),
                numbers("evil.0", 0),
                numbers("evil.1", 1),
            ),
            helper.make_node("Reshape", ["weights", "evil.row"], ["evil.a"]),
            helper.make_node("Reshape", ["weights", "evil.column"], ["evil.b"]),
            helper.make_node("BitwiseAnd", ["evil.a", "evil.b"], ["evil.large"]),
            helper.make_node("Slice", ["evil.large", "evil.0", "evil.1", "evil.0"], ["evil.some"]),
            helper.make_node("Slice", ["evil.some", "evil.0", "evil.1", "evil.1"], ["evil.one"]),
            helper.make_node("Cast", ["evil.one"], ["evil.float"], to=1),
            helper.make_node("Mul", ["evil.out", "evil.float"], [out]),
        ]
    )


@pytest.mark.parametrize(("edit", "kernels"), [(many, True), (in_product, False)])
def test_values_of_constants_alone_are_bounded_together_and_in_bodies(
    tmp_path: Path, edit: Edit, kernels: bool
) -> None:
    code, error, peak = run(hostile(tmp_path, edit), kernels=kernels)
    assert code == 1
    assert f"{GRAPH} makes" in error
    assert "values of constants alone" in error
    assert peak < 300_000_000


@pytest.mark.parametrize(("edit", "name"), [(outer_of_an_input, "1600 MB"), (doubled, "MB")])
@pytest.mark.parametrize("flags", [(), ("--memory", "130MB")])
def test_a_large_value_of_inputs_is_refused_before_there_is_memory_for_it(
    tmp_path: Path, edit: Edit, name: str, flags: tuple[str, ...]
) -> None:
    code, error, peak = run(hostile(tmp_path, edit), *flags)
    assert code == 1
    assert f"{GRAPH} is a graph that asks for" in error
    assert name in error
    assert "do not use this bundle" in error
    assert "outgrown" not in error
    assert peak < (200_000_000 if flags else 800_000_000)


def test_numbers_that_a_body_counts_come_from_an_input(tmp_path: Path) -> None:
    code, error, peak = run(hostile(tmp_path, in_attention("Range")))
    assert code == 1
    assert "has a Range of constants alone" in error
    assert peak < 300_000_000


def test_a_body_that_repeats_its_output_is_refused_before_there_is_memory_for_it(tmp_path: Path) -> None:
    code, error, peak = run(hostile(tmp_path, in_attention("Tile")), kernels=False)
    assert code == 1
    assert f"{GRAPH} is a graph that asks for" in error
    assert peak < 800_000_000


def test_an_honest_bundle_runs_within_the_same_bounds(tmp_path: Path) -> None:
    for flags, kernels in (
        ((), True),
        (("--memory", "130MB"), True),
        ((), False),
        (("--memory", "230MB"), False),
    ):
        code, error, _ = run(
            hostile(tmp_path / f"{kernels}{len(flags)}", lambda model: None), *flags, kernels=kernels
        )
        assert code == 0, error
