"""Static graphs of every family compute what the graph that they were made of computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
import onnx_ir as ir
from family_models import FAMILIES, VOCAB
from graph_runner import path, random_tree, tree_mask
from plugin_packages import needs_plugin
from static_parts import StaticPart, make_part

from paceline.export.errors import ExportError
from paceline.export.static.halves import half_of
from paceline.export.static.range import check_range

pytestmark = pytest.mark.export

STRETCHED = ("rope dynamic", "rope longrope")
FAST = ("llama", "gemma2", "cohere")
TOLERANCE = 2e-5
PROMPT = [int(token) for token in np.random.default_rng(3).integers(3, VOCAB, 30)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
        for name in FAMILIES
        if name not in STRETCHED
    ],
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StaticPart:
    return make_part(request.param, tmp_path_factory.mktemp("static"), taps=["hidden", "hidden.0"])


def test_prompts_trees_and_levels_give_the_same_logits(made: StaticPart) -> None:
    rng = np.random.default_rng(0)
    static, plain = made.static(50, 20), made.plain(50, 20)
    for at, end in ((0, 13), (13, 14), (14, 17), (17, 30)):
        got, wanted = (model.extend(PROMPT[at:end]).copy() for model in (static, plain))
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE)
    parents = random_tree(rng, 11, 5)
    tokens = [int(token) for token in rng.integers(3, VOCAB, len(parents))]
    depths = [len(path(parents, node)) - 1 for node in range(len(parents))]
    mask, cut = tree_mask(parents), 5
    whole = [model.grow(tokens, [30 + d for d in depths], mask, 0).copy() for model in (static, plain)]
    np.testing.assert_allclose(*whole, atol=TOLERANCE)
    for model in (static, plain):
        model.grow(tokens[:cut], [30 + d for d in depths[:cut]], mask[:cut, :cut], 0)
    later = [
        model.grow(tokens[cut:], [30 + d for d in depths[cut:]], mask[cut:], cut).copy()
        for model in (static, plain)
    ]
    np.testing.assert_allclose(*later, atol=TOLERANCE)


def test_what_prompts_leave_behind_is_the_same(made: StaticPart) -> None:
    static, plain = made.static(50), made.plain(50)
    extras = [model.prefill(PROMPT).extras for model in (static, plain)]
    for tap in ("hidden", "hidden.0"):
        np.testing.assert_allclose(extras[0][tap], extras[1][tap], atol=TOLERANCE)
    caches = [model.cache.inputs() for model in (static, plain)]
    for name, rows in caches[1].items():
        np.testing.assert_allclose(caches[0][name][:, :30], rows[:, :30], atol=TOLERANCE)


def test_a_static_graph_has_only_what_accelerators_take(made: StaticPart) -> None:
    assert made.part.static is not None
    for name in made.part.static.names():
        graph = ir.load(made.folder / made.part.beside(name)).graph
        assert graph.opset_imports[""] == 21
        assert not {n.op_type for n in graph if n.domain == "paceline"}
        assert not {n.op_type for n in graph} & {
            "RMSNormalization",
            "RotaryEmbedding",
            "Cos",
            "Sin",
            "Shape",
            "Range",
        }
        for value in graph.inputs:
            assert all(isinstance(size, int) and size > 0 for size in value.shape or ["unknown"])
            assert value.dtype in (ir.DataType.INT32, ir.DataType.FLOAT)
        for value in graph.outputs:
            producer = value.producer()
            assert producer is not None
            views = ("Reshape", "Squeeze", "Unsqueeze")
            assert producer.op_type not in (
                *views,
                *(["Gather"] if str(value.name).startswith("new_") else []),
            )
        for value in (out for node in graph for out in node.outputs):
            assert value.shape is None or len(value.shape) <= 4
        for constant in graph.initializers.values():
            if constant.dtype == ir.DataType.INT64 and constant.const_value is not None:
                assert np.abs(constant.const_value.numpy()).max() < 2**31


@pytest.mark.parametrize(
    ("word", "tolerance"),
    [
        pytest.param("openvino", 1e-4, marks=needs_plugin("openvino")),
        pytest.param("qnn", 0.1, marks=needs_plugin("qnn")),
        pytest.param("webgpu", 1e-4, marks=needs_plugin("webgpu")),
    ],
)
@pytest.mark.parametrize("name", ["qwen3", "gemma2", "cohere"])
def test_other_devices_give_the_cpu_s_logits(name: str, word: str, tolerance: float, tmp_path: Path) -> None:
    """Norms of heads, soft-caps and windows, neighbours that are turned; prompts, single rows and several."""
    made = make_part(name, tmp_path)
    here, there = made.static(50, 20), made.static(50, 20, device=word)
    for at, end in ((0, 13), (13, 14), (14, 17)):
        got, wanted = (model.extend(PROMPT[at:end]).copy() for model in (there, here))
        np.testing.assert_allclose(got, wanted, atol=tolerance)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> StaticPart:
    return make_part("llama", tmp_path_factory.mktemp("half"), taps=["hidden"], static_type="fp16")


@pytest.mark.parametrize(
    "word",
    [
        "cpu",
        pytest.param("qnn", marks=needs_plugin("qnn")),
        pytest.param("webgpu", marks=needs_plugin("webgpu")),
    ],
)
@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "qwen3", "gpt2"])
def test_in_16_bits_they_are_a_hundredth_of_the_largest_logit_off_at_most(
    name: str, word: str, tmp_path: Path
) -> None:
    made = make_part(name, tmp_path, static_type="fp16")
    plain, static = made.plain(50, 20), made.static(50, 20, device=word)
    assert static.cache.form == "fp16"
    for at, end in ((0, 13), (13, 14), (14, 17), (17, 30)):
        wanted, got = (model.extend(PROMPT[at:end]).copy() for model in (plain, static))
        assert 0 < np.abs(got - wanted).max() < 0.01 * np.abs(wanted).max()


def test_of_a_graph_in_16_bits_all_but_logits_and_hidden_states_is_so(half: StaticPart) -> None:
    assert half.part.static is not None
    for name in half.part.static.names():
        graph = ir.load(half.folder / half.part.beside(name)).graph
        floats = [value for value in graph.inputs if value.dtype != ir.DataType.INT32]
        assert {value.dtype for value in floats} == {ir.DataType.FLOAT16}
        given = {str(value.name): value.dtype for value in graph.outputs}
        wide = {"logits", "hidden"}
        assert {name for name, kind in given.items() if kind == ir.DataType.FLOAT} == wide
        assert {given[name] for name in given.keys() - wide} == {ir.DataType.FLOAT16}
        assert not any(value.dtype == ir.DataType.FLOAT for value in graph.initializers.values())


def test_what_16_bits_do_not_hold_is_refused(half: StaticPart) -> None:
    """A weight that is too large, and weights that are not, of which a sum is."""
    forms, folder = half.made.forms, half.folder / "target"
    assert forms is not None
    assert forms.halves is not None
    products = [node for node in forms.graph.graph if node.op_type == "MatMul"]
    name = next(
        str(v.name) for node in products if (v := node.inputs[1]) is not None and v.name in forms.halves
    )
    shape = forms.halves[name].shape.numpy()
    with pytest.raises(ExportError, match="large has numbers that 16 bits do not hold"):
        half_of(ir.tensor(np.full(shape, 1e5, np.float32), name="large")).numpy()
    check_range("target", forms, folder, PROMPT)
    halves = {**forms.halves, name: half_of(ir.tensor(np.full(shape, 6e4, np.float32), name=name))}
    with pytest.raises(ExportError, match=r"16 bits do not hold what it computes \(MatMul "):
        check_range("target", replace(forms, halves=halves), folder, PROMPT)
    assert not (folder / "range.onnx").exists()


@pytest.mark.parametrize("name", STRETCHED)
def test_rotary_frequencies_that_depend_on_the_length_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"depend on the length of the text.*--profile portable"):
        make_part(name, tmp_path)
