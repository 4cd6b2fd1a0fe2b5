"""The largest inputs of projections on a text, and which products of 8 bits keep their inputs for it."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx_ir")
pytest.importorskip("transformers")

import onnx_ir as ir
from small_checkpoints import small_tokenizer, write_checkpoint

from paceline.export.order import Order
from paceline.export.peaks import watched
from paceline.export.pipeline import export_bundle
from paceline.export.source import Loaded, load_model
from paceline.export.text_rounding import exact_inputs
from paceline.export.torch_model import logits_of
from paceline.runtime.ops import packed_matmul

pytestmark = pytest.mark.export

DOWN = "model.layers.0.mlp.down_proj.weight"


def spoilt(folder: Path, **changes: object) -> Path:
    """A checkpoint of three layers in the first of which one token has an input of `down_proj` far above all others."""
    write_checkpoint(folder, hidden_size=64, intermediate_size=96, num_hidden_layers=3, **changes)
    loaded = load_model(str(folder))
    layer = loaded.model.model.layers[0]
    token = small_tokenizer().encode("Every").ids[0]
    table = loaded.model.get_input_embeddings().weight
    with torch.no_grad():
        direction = table[token] / table[token].norm()
        table[token] *= 100
        layer.self_attn.o_proj.weight.zero_()
        unit = direction * 8
        layer.mlp.gate_proj.weight[7] = 40 * unit
        layer.mlp.up_proj.weight[7] = 40 * unit
    loaded.model.set_attn_implementation("eager")
    loaded.model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoilt(tmp_path_factory.mktemp("spoilt"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return load_model(str(folder))


def test_peaks_are_those_of_what_each_projection_reads(loaded: Loaded) -> None:
    read: list[np.ndarray] = []
    down = loaded.model.get_submodule(DOWN.removesuffix(".weight"))
    handle = down.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][0].numpy().copy()))
    with watched(loaded.model) as seen:
        logits_of(loaded, [5, 6, 7], 3)
        logits_of(loaded, [8, 9], 2)
    handle.remove()
    x = np.concatenate(read)
    np.testing.assert_array_equal(torch.cat(seen[DOWN]), np.abs(x).max(1))
    projections = [name for name, _ in loaded.model.named_parameters() if "proj" in name]
    assert set(seen) == {*projections, "lm_head.weight"}
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_inputs_are_exact_where_rounding_costs_most(loaded: Loaded) -> None:
    choose = exact_inputs(loaded, small_tokenizer())
    exact = {
        name
        for name, weight in loaded.model.named_parameters(remove_duplicate=False)
        if weight.ndim == 2 and (codes := choose(name, weight.detach().numpy().T)) is not None and codes.exact
    }
    named = {name for name, _ in loaded.model.named_parameters() if "proj" in name}
    last = {name for name in named if name.startswith("model.layers.2.")}
    read = {name for name in named if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj")}
    assert exact == {DOWN, "lm_head.weight"} | last | read


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_an_int8_bundle_computes_them_so(tmp_path: Path, tied: bool) -> None:
    source = spoilt(tmp_path / "source", tie_word_embeddings=tied)
    export_bundle(Order(str(source), quant="int8"), tmp_path / "bundle")
    nodes = [
        n for n in ir.load(tmp_path / "bundle/target/model.onnx").graph if n.op_type in packed_matmul.PRODUCTS
    ]
    bits = [node.attributes["activation_bits"].as_int() for node in nodes]
    # Four products a layer, then the head.
    assert bits == [32, 8, 8, 32, 32, 8, 8, 8, *(32,) * 4, 32]
