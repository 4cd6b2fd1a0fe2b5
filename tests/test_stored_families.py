"""Every family in the form in which a bundle stores it: torch's logits, by function bodies and by our kernels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
import onnx_ir as ir
from family_models import FAMILIES, VOCAB, write_family
from graph_runner import Runner, make_runner, path, random_tree, stored_runner, tree_mask

from paceline.embedded import embedded_bundle
from paceline.export.check import EXACT, ROUNDED_ACTIVATIONS, Limits, compare
from paceline.export.passes import nodes_per_layer, simplify
from paceline.export.storage import Storage, store
from paceline.runtime.bundle.admission import GRAPH_OPERATORS, admit
from paceline.runtime.bundle.survey import Operator
from paceline.runtime.manifest import read_manifest
from paceline.runtime.ops import library

pytestmark = pytest.mark.export

TOLERANCE = 1e-4
ANY_PART = msgspec.structs.replace(read_manifest(embedded_bundle()).target, weights={})
FAST = ("llama",)
LIMITS = {"none": EXACT, "int8": ROUNDED_ACTIVATIONS, "int4": Limits(2.0, 1.0)}
"""Against the weights before they were rounded."""
PROMPT = [int(token) for token in np.random.default_rng(3).integers(3, VOCAB, 24)]
KEPT = 15
STORAGES = {
    "none": Storage(),
    "int4": Storage("int4", 32),
    "int8 channel": Storage("int8", None),
    "portable int4": Storage("int4", 32, "portable"),
}
FUSED = {
    "llama": 5,
    "llama tied": 5,
    "llama mha": 5,
    "qwen2": 5,
    "qwen2 window": 5,
    "qwen3": 5,
    "mistral": 5,
    "phi3": 5,
    "phi3 partial": 5,
    "glm": 5,
    "granite": 9,
    "gemma2": 9,
    "gemma3": 9 + 6 / 3,
    **{name: 5 for name in FAMILIES if name.startswith("rope")},
}
"""Nodes a layer where it is known what remains: in Gemma the norms and sums behind the products (and in Gemma 3 a
second table of rotations, shared by its layers), in Granite factors and sums there."""


WITNESSES = {
    "llama": "Add Cast Concat Cos Gather MatMul Mul Reshape Sigmoid SimplifiedLayerNormalization Sin Slice Split Sub"
    " Squeeze Transpose Unsqueeze com.microsoft:MatMulNBits paceline:NormQMatMul paceline:NormQMatMulGlu"
    " paceline:QMatMulAdd paceline:RotaryTreeAttention paceline:TreeAttention",
    "gemma2": "Div Gelu",
    "cohere": "Expand ReduceMean",
    "gpt2": "LayerNormalization Pow Tanh paceline:QEmbedding",
    "olmo2": "RMSNormalization RotaryEmbedding paceline:QMatMul paceline:QMatMulGlu",
}
"""Operators that the runtime admits, by a family whose graphs have them."""
ACTIVATIONS = {
    "relu": "Relu",
    "relu6": "Clip",
    "hardswish": "HardSwish",
    "leaky_relu": "LeakyRelu",
    "mish": "Mish",
    "apertus": "Exp Greater Min Where",
}
"""The same for activations that no family of the list has; the last is that of a family of its own."""
ADMITTED = {("", "Shape"), ("", "ArgMax"), ("", "TopK"), ("", "LogSoftmax")}
"""Admitted though no family writes it: what makes rows for each token in a graph not captured from torch, and what
feeds a draft back, or grows a tree, within the graph of a head."""


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in FAMILIES]
)
def captured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Runner]:
    folder = write_family(request.param, tmp_path_factory.mktemp("family"))
    return request.param, make_runner(folder)


def ways() -> list[bool]:
    """Without our kernels, and with them where they are."""
    return [False, True] if library.available() else [False]


def tree_of(runner: Runner) -> np.ndarray:
    """Logits of a prompt and of a tree behind it."""
    rng = np.random.default_rng(1)
    parents = random_tree(rng, 9, 6)
    tokens = [int(token) for token in rng.integers(3, VOCAB, len(parents))]
    runner.reset()
    prompt = runner.prefill(PROMPT[:KEPT])
    positions = [KEPT + len(path(parents, node)) - 1 for node in range(len(parents))]
    return np.concatenate([prompt, runner.run(tokens, positions, tree_mask(parents), KEPT)["logits"]])


def test_unquantised_weights_give_the_logits_of_the_captured_graph(
    captured: tuple[str, Runner], tmp_path: Path
) -> None:
    _, runner = captured
    wanted = tree_of(runner)
    for kernels in ways():
        got = tree_of(stored_runner(runner, STORAGES["none"], tmp_path, kernels=kernels))
        assert np.abs(got - wanted).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["int4", "int8 channel", "portable int4"])
def test_quantised_weights_stay_within_the_limits_of_the_check(
    captured: tuple[str, Runner], name: str, tmp_path: Path
) -> None:
    _, runner = captured
    wanted, storage = tree_of(runner), STORAGES[name]
    results = []
    for kernels in ways():
        results.append(tree_of(stored_runner(runner, storage, tmp_path, kernels=kernels)))
        agreement = compare(results[-1], wanted)
        limits = LIMITS[storage.quant]
        assert agreement.relative <= limits.relative
        assert agreement.spread <= limits.spread
    if len(results) == 2 and storage.block is not None:
        assert compare(*results).spread < 0.02, "kernels and bodies round the same activations"


def test_new_rows_are_given_out_under_the_names_of_the_contract(
    captured: tuple[str, Runner], tmp_path: Path
) -> None:
    _, runner = captured
    stored = stored_runner(runner, STORAGES["none"], tmp_path)
    assert [o.name for o in stored.session.get_outputs()] == [o.name for o in runner.session.get_outputs()]
    assert [i.name for i in stored.session.get_inputs()] == [i.name for i in runner.session.get_inputs()]


def test_layers_are_fused_as_far_as_operators_exist(captured: tuple[str, Runner], tmp_path: Path) -> None:
    name, runner = captured
    for storage in (STORAGES["none"], STORAGES["int4"]):
        graph = stored_runner(runner, storage, tmp_path).graph
        kinds = Counter(node.op_type for node in graph.graph)
        assert not kinds["MatMul"]
        assert not kinds["MatMulNBits"]
        if name in FUSED:
            assert nodes_per_layer(graph.graph, runner.facts.layers) == FUSED[name]


def test_a_tied_table_is_stored_once(captured: tuple[str, Runner], tmp_path: Path) -> None:
    name, runner = captured
    tied = runner.loaded.config.tie_word_embeddings
    for storage in (STORAGES["none"], STORAGES["int4"]):
        graph = stored_runner(runner, storage, tmp_path).graph.graph
        found = [node for node in graph if node.op_type == "QEmbedding"]
        assert len(found) == int(tied), name
        if tied:
            table = found[0].inputs[1]
            assert table is not None
            readers = {use.node.op_type for use in table.uses()}
            assert len(readers) == 2, "the head reads it too"


def operators_of(runner: Runner) -> set[Operator]:
    """What the nodes of its graphs are, in every form."""
    found = set()
    for storage in (*STORAGES.values(), Storage(profile="portable")):
        graph = runner.graph.clone()
        simplify(graph)
        store(graph, runner.loaded.dtype, storage, lambda name, values, quantised, packed: None)
        admit(ir.to_proto(graph).SerializeToString(), ANY_PART, Path("graph"))
        found |= {(node.domain, node.op_type) for node in graph.graph}
    return found


def listed(names: str) -> set[Operator]:
    pairs = (name.rpartition(":") for name in names.split())
    return {(domain, name) for domain, _, name in pairs}


def test_every_family_is_admitted_and_has_the_operators_it_is_a_witness_of(
    captured: tuple[str, Runner],
) -> None:
    name, runner = captured
    assert listed(WITNESSES.get(name, "")) <= operators_of(runner)


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_so_has_every_other_activation(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"model_type": "llama", "hidden_act": name, "head_dim": 8}
    monkeypatch.setitem(FAMILIES, name, {"model_type": name} if name == "apertus" else model)
    assert listed(ACTIVATIONS[name]) <= operators_of(make_runner(write_family(name, tmp_path)))


def test_nothing_is_admitted_that_nobody_writes() -> None:
    assert set(WITNESSES) <= set(FAMILIES)
    witnessed = listed(" ".join((*WITNESSES.values(), *ACTIVATIONS.values())))
    assert witnessed | ADMITTED == GRAPH_OPERATORS
    assert not witnessed & ADMITTED
