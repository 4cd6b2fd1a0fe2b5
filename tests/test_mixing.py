"""Formats that differ from matrix to matrix: what stays one product, what is taken apart, and that results stay."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
import onnx_ir as ir
import torch
from family_models import VOCAB, write_family
from graph_runner import Runner, make_runner, stored_runner
from transformers.pytorch_utils import Conv1D

from paceline.embedded import embedded_bundle
from paceline.export.caches import cached_as
from paceline.export.check import compare
from paceline.export.mixing import Choose
from paceline.export.quantize import Floats, Quantised, quantise
from paceline.export.storage import Profile, Storage, layout_of
from paceline.export.trial import Rows
from paceline.runtime.bundle.admission import admit
from paceline.runtime.manifest import read_manifest
from paceline.runtime.ops import library

pytestmark = pytest.mark.export

PROMPT = [int(token) for token in np.random.default_rng(3).integers(3, VOCAB, 12)]
ANY_PART = msgspec.structs.replace(read_manifest(embedded_bundle()).target, weights={})


def with_minima(values: Floats, bits: int, block: int) -> Quantised:
    """Rounded between the smallest and the largest number of each block."""
    k, n = values.shape
    wide = np.zeros((n, -(-k // block) * block), np.float32)
    wide[:, :k] = values.T
    blocks = wide.reshape(n, -1, block)
    minima = blocks.min(axis=-1).astype(np.float16)
    scales = ((blocks.max(axis=-1) - minima) / ((1 << bits) - 1)).astype(np.float16)
    codes = np.rint((blocks - minima[..., None]) / np.maximum(scales, 1e-7)[..., None])
    codes = np.clip(codes, 0, (1 << bits) - 1).astype(np.uint8).reshape(n, -1)
    codes[:, k:] = 0
    return Quantised(codes, scales, minima, bits, block, k, 0.0)


def chooser(**formats: str) -> tuple[Choose, dict[str, Quantised | None]]:
    """Rounds by a format for each word of a name: "8", "8x" (exact inputs), "5m", "floats"; `rest` for all others."""
    chosen: dict[str, Quantised | None] = {}

    def choose(name: str, values: Floats) -> Quantised | None:
        said = next((form for word, form in formats.items() if word in name), formats["rest"])
        if said == "floats":
            codes = None
        elif said.endswith("x"):
            codes = replace(quantise(values, int(said[:-1]), 32), exact=True)
        elif said.endswith("m"):
            codes = with_minima(values, int(said[:-1]), 32)
        else:
            codes = quantise(values, int(said), 32)
        chosen[name] = codes
        return codes

    return choose, chosen


def torch_of_codes(runner: Runner, chosen: dict[str, Quantised | None], *, tied: bool) -> Rows:
    """Logits of the model whose parameters are what the codes say, those of a tied table too; all are put back."""
    modules = dict(runner.loaded.model.named_modules())
    before = {name: m.weight for name, m in modules.items() if hasattr(m, "weight")}
    try:
        for name, codes in chosen.items():
            if codes is not None:
                own = name.removesuffix(".weight")
                meant = torch.from_numpy(np.array(codes.dense(0, codes.n)))
                new = torch.nn.Parameter(meant.T if isinstance(modules[own], Conv1D) else meant)
                for other, weight in before.items():
                    if other == own or (tied and weight is before[own]):
                        modules[other].weight = new
        return runner.torch_logits(PROMPT)
    finally:
        for name, weight in before.items():
            modules[name].weight = weight


@pytest.fixture(scope="module", params=["llama", "llama tied", "gpt2", "gemma2"])
def captured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return make_runner(write_family(request.param, tmp_path_factory.mktemp("family")))


MIXES = {
    "like Q4_K_M": {"v_proj": "6", "down_proj": "6", "lm_head": "6", "embed": "6", "rest": "4m"},
    "all apart": {"q_proj": "5", "k_proj": "5m", "gate": "4m", "up_proj": "8", "embed": "4m", "rest": "6"},
    "some floats": {"k_proj": "floats", "gate": "floats", "embed": "floats", "rest": "8"},
    "exact inputs": {"v_proj": "8x", "down_proj": "8x", "lm_head": "8x", "embed": "8", "rest": "8"},
    "only floats": {"rest": "floats"},
}


@pytest.mark.parametrize("profile", ["cpu", "portable"])
@pytest.mark.parametrize("mix", MIXES)
def test_every_matrix_is_what_was_chosen_for_it(
    captured: Runner, mix: str, profile: Profile, tmp_path: Path
) -> None:
    choose, chosen = chooser(**MIXES[mix])
    runs = [
        stored_runner(captured, Storage(profile=profile), tmp_path, kernels=kernels, choose=choose)
        for kernels in {False, library.available() and profile == "cpu"}
    ]
    if profile == "portable":  # which has no minima
        chosen = {name: None if c is None or c.minima is not None else c for name, c in chosen.items()}
    meant = torch_of_codes(captured, chosen, tied=profile == "cpu")
    for run in runs:
        admit(ir.to_proto(run.graph).SerializeToString(), ANY_PART, Path("graph"))
        assert compare(run.prefill(PROMPT), meant).spread < (1e-3 if mix == "only floats" else 0.05)


def stored(runner: Runner, folder: Path, **formats: str) -> ir.Graph:
    return stored_runner(runner, Storage(), folder, choose=chooser(**formats)[0]).graph.graph


def kinds(graph: ir.Graph) -> Counter[str]:
    return Counter(node.op_type for node in graph if node.domain == "paceline" or node.op_type == "Concat")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return make_runner(write_family("llama", tmp_path_factory.mktemp("llama")))


def test_equal_formats_stay_one_product(llama: Runner, tmp_path: Path) -> None:
    found = kinds(stored(llama, tmp_path, embed="floats", rest="5m"))
    layer = {"NormQMatMul": 2, "NormQMatMulGlu": 2, "QMatMulAdd": 4, "RotaryTreeAttention": 2}
    plain = kinds(stored_runner(llama, Storage("int4", 32), tmp_path).graph.graph)
    assert found == plain
    assert found == Counter(layer) + Counter(NormQMatMul=1, Concat=plain["Concat"])


def test_unlike_formats_are_products_of_their_own_in_front_of_one_attention(
    llama: Runner, tmp_path: Path
) -> None:
    together = kinds(stored(llama, tmp_path, embed="floats", rest="4m"))
    graph = stored(llama, tmp_path, embed="floats", v_proj="6", up_proj="6", rest="4m")
    found = kinds(graph)
    assert found["RotaryTreeAttention"] == 2
    assert found["Concat"] == together["Concat"] + 2, "q and k beside v, in each layer; none for gate and up"
    assert found["NormQMatMul"] == 2 * (2 + 2) + 1
    assert found["NormQMatMulGlu"] == 0
    assert layout_of(graph) == 2
    widths = [n.attributes["N"].as_int() for n in graph if n.op_type == "NormQMatMul"]
    assert widths == 2 * [32 + 16, 16, 48, 48] + [VOCAB]


def test_a_table_has_codes_where_they_are_chosen_and_16_bits_without(llama: Runner, tmp_path: Path) -> None:
    graph = stored(llama, tmp_path, rest="8")
    [table] = [n for n in graph if n.op_type == "QEmbedding"]
    assert (table.attributes["bits"].as_int(), table.attributes["N"].as_int()) == (8, VOCAB)
    assert layout_of(graph) == 1
    assert not [n for n in graph if n.op_type == "Gather" and "embed" in str(n.inputs[0].name)]
    plain = stored_runner(llama, Storage("int8", 32), tmp_path).graph.graph
    assert "QEmbedding" not in kinds(plain)


@pytest.mark.parametrize("profile", ["cpu", "portable"])
def test_a_product_takes_its_inputs_as_it_was_chosen(llama: Runner, profile: Profile, tmp_path: Path) -> None:
    choose = chooser(v_proj="8x", down_proj="8x", embed="floats", rest="8")[0]
    graph = stored_runner(llama, Storage(profile=profile), tmp_path, kernels=False, choose=choose).graph.graph
    name, exact = ("activation_bits", 32) if profile == "cpu" else ("accuracy_level", 1)
    products = [node for node in graph if name in node.attributes]
    found = [node.attributes["N"].as_int() for node in products if node.attributes[name].as_int() == exact]
    assert found == 2 * [16, 32], "v_proj apart from q and k, and down_proj, in each layer"
    assert len(products) == 11


def test_narrow_caches_keep_the_bodies_of_mixed_formats(llama: Runner, tmp_path: Path) -> None:
    graph = stored_runner(llama, Storage(), tmp_path, choose=chooser(v_proj="6", rest="4m")[0]).graph
    twin = cached_as(graph, "int8")
    overloads = {key for key in graph.functions if key[1].endswith("MatMul")}
    assert len(overloads) == 2
    assert overloads <= set(twin.functions)
    admit(ir.to_proto(twin).SerializeToString(), ANY_PART, Path("graph"))


def test_names_are_those_of_the_parameters(captured: Runner, tmp_path: Path) -> None:
    choose, chosen = chooser(rest="8")
    stored_runner(captured, Storage(), tmp_path, choose=choose)
    modules = dict(captured.loaded.model.named_modules())
    assert {name.removesuffix(".weight") for name in chosen} <= set(modules)
    linear = {n for n, m in modules.items() if isinstance(m, torch.nn.Linear | Conv1D)}
    assert {f"{name}.weight" for name in linear} <= set(chosen)
