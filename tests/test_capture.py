"""From a checkpoint folder to a graph: the contract's inputs and outputs, and who is turned away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import onnx_ir as ir  # noqa: E402
import onnxruntime as ort  # noqa: E402
from family_models import BASE, VOCAB, write_family  # noqa: E402
from graph_runner import Runner, make_runner  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from paceline.export.attention import attention_by  # noqa: E402
from paceline.export.capture import capture  # noqa: E402
from paceline.export.errors import ExportError  # noqa: E402
from paceline.export.facts import facts  # noqa: E402
from paceline.export.norms import fused_norms  # noqa: E402
from paceline.export.source import load_model  # noqa: E402
from paceline.runtime.manifest import Rope  # noqa: E402
from paceline.runtime.model.rope import frequencies  # noqa: E402

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return make_runner(write_family("llama tied", tmp_path_factory.mktemp("llama")), taps=["hidden"])


def dims(value: ir.Value) -> list[Any]:
    assert value.shape is not None
    return [d if isinstance(d, int) else d.value for d in value.shape]


def test_inputs_and_outputs_are_those_of_the_contract(llama: Runner) -> None:
    inputs = {value.name: dims(value) for value in llama.graph.graph.inputs}
    outputs = {value.name: dims(value) for value in llama.graph.graph.outputs}
    cache = {f"cache_{part}.{i}": [2, "S", 8] for part in "kv" for i in range(2)}
    new = {f"new_{part}.{i}": [2, "T", 8] for part in "kv" for i in range(2)}
    assert inputs == {
        "token_ids": ["T"],
        "positions": ["T"],
        "tree_mask": ["T", "W"],
        "past_len": [1],
        "rows": ["R"],
        **cache,
    }
    assert outputs == {"logits": ["R", VOCAB], "hidden": ["T", 32], **new}


def test_attention_is_one_node_a_layer_with_a_function_body(llama: Runner) -> None:
    nodes = [node for node in llama.graph.graph if node.domain == "paceline"]
    assert [node.op_type for node in nodes] == ["TreeAttention"] * 2
    assert [name[:2] for name in llama.graph.functions] == [("paceline", "TreeAttention")]


def test_weights_are_those_of_torch_without_a_copy(llama: Runner) -> None:
    places = {parameter.data_ptr() for parameter in llama.loaded.model.parameters()}
    for name, value in llama.graph.graph.initializers.items():
        if value.const_value is not None and value.const_value.size > 64:
            assert value.const_value.raw.data_ptr() in places, name


@pytest.mark.parametrize("rows", [[], [0], [4, 2, 0]])
def test_only_the_rows_asked_for_get_logits(llama: Runner, rows: list[int]) -> None:
    llama.reset()
    mask = np.tril(np.ones((5, 5), bool))
    every = llama.run([5, 6, 7, 8, 9], range(5), mask, 0)["logits"]
    some = llama.run([5, 6, 7, 8, 9], range(5), mask, 0, rows)["logits"]
    assert some.shape == (len(rows), VOCAB)
    assert np.allclose(some, every[rows], atol=1e-5)


def test_a_first_token_alone_needs_no_cache(llama: Runner) -> None:
    llama.reset()
    assert np.allclose(llama.prefill([7]), llama.torch_logits([7]), atol=1e-4)


def test_the_model_is_left_as_it_was(llama: Runner) -> None:
    for module in llama.loaded.model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_an_unknown_tap_is_named(llama: Runner) -> None:
    with pytest.raises(ExportError, match=r"no tap 'hidden.2'"):
        capture(llama.loaded, ["hidden.2"])


def test_facts_are_the_sizes_of_the_model(llama: Runner) -> None:
    known = facts(llama.loaded)
    assert (known.layers, known.kv_heads, known.head_dim, known.hidden, known.vocab) == (2, 2, 8, 32, VOCAB)
    assert (known.context, known.window, known.rope) == (64, None, None)
    assert known.parameters == sum(p.numel() for p in llama.loaded.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("family", "most"), [("llama", 38), ("gpt2", 37), ("gemma2", 42)])
def test_a_layer_costs_no_more_nodes_than_it_did(family: str, most: int, tmp_path: Path) -> None:
    counts = []
    for layers in (2, 4):
        folder = write_family(family, tmp_path / str(layers), layers=layers)
        ir.save(capture(load_model(str(folder))), tmp_path / "graph.onnx")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        ort.InferenceSession(str(tmp_path / "graph.onnx"), options, providers=["CPUExecutionProvider"])
        counts.append(len(ir.load(tmp_path / "optimised.onnx").graph))
    assert (counts[1] - counts[0]) / 2 <= most


# Norms: what a module computes decides, not its name.


class Norm(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, 16))
        self.epsilon = 1e-5
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return {"plain": x * self.weight, "shifted": x * (1 + self.weight), "cubed": x * self.weight**3}[
            self.kind
        ]


@pytest.mark.parametrize(("kind", "fused"), [("plain", True), ("shifted", True), ("cubed", False)])
def test_a_norm_is_fused_only_if_it_computes_one(kind: str, fused: bool) -> None:
    norm = Norm(kind)
    with fused_norms(norm):
        assert ("forward" in vars(norm)) is fused
    assert "forward" not in vars(norm)
    assert [name for name, _ in norm.named_buffers()] == []


# Attention keywords.


def attend(**keywords: Any) -> Any:
    q = torch.zeros(1, 2, 3, 4)
    function = transformers.AttentionInterface()["paceline"]
    with attention_by(lambda call: call.query):
        return function(nn.Identity(), q, q, q, None, **keywords)


def test_a_known_attention_keyword_is_taken() -> None:
    out, _ = attend(
        scaling=0.5, softcap=3.0, sliding_window=4, position_ids=torch.zeros(1, 3), dropout=0.0, s_aux=None
    )
    assert out.shape == (1, 3, 2, 4)


@pytest.mark.parametrize(
    "keywords", [{"s_aux": torch.zeros(2)}, {"head_mask": 1}, {"dropout": 0.1}, {"is_causal": False}]
)
def test_an_attention_keyword_that_is_not_understood_is_an_error(keywords: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match="Identity"):
        attend(scaling=0.5, **keywords)


# Who is turned away.


def write_config(folder: Path, model_type: str, **settings: Any) -> Path:
    config = transformers.AutoConfig.for_model(model_type, **settings)
    config.save_pretrained(folder)
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
    return folder


SMALL = {key: value for key, value in BASE.items() if key != "tie_word_embeddings"}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCAB}


@pytest.mark.parametrize(
    ("model_type", "settings", "says"),
    [
        ("mixtral", SMALL, r"mixture of experts \(model.layers.0.mlp"),
        ("mamba", SMALL, r"state-space or hybrid model \(backbone.layers.0"),
        ("jamba", SMALL, "state-space or hybrid"),
        ("t5", {}, "encoder-decoder"),
        ("gemma3", {}, "multimodal"),
        ("gptj", {**GPT, "rotary_dim": 8}, r"attention interface: transformer.h.0.attn \(GPTJAttention\)"),
        ("vit", {}, "not a text decoder"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_name_before_its_weights_are_read(
    model_type: str, settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=says) as refusal:
        load_model(str(write_config(tmp_path, model_type, **settings)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("pytorch_model.bin", "only pytorch_model.bin"),
        ("notes.txt", "none"),
    ],
)
def test_weights_that_are_not_safetensors_are_refused(file: str, says: str, tmp_path: Path) -> None:
    write_config(tmp_path, "llama", **SMALL)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / file).write_bytes(b"anything")
    with pytest.raises(ExportError, match=says):
        load_model(str(tmp_path))


def change_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model_type": "unheard_of"}, "does not know the model type 'unheard_of'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"hidden_size": "wide"}, "config.json"),
        ({"model_type": ["llama"]}, "config.json"),
    ],
)
def test_a_bad_configuration_is_one_line(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    change_config(write_family("llama", tmp_path), **settings)
    with pytest.raises(ExportError, match=says) as refusal:
        load_model(str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_configuration_cannot_choose_code_to_run(tmp_path: Path) -> None:
    evil = {
        "attn_implementation": "someone/kernel",
        "_attn_implementation": "someone/kernel",
        "_attn_implementation_internal": "someone/kernel",
        "auto_map": {"AutoModelForCausalLM": "modeling.Model"},
    }
    change_config(write_family("llama", tmp_path), **evil)
    assert load_model(str(tmp_path)).config._attn_implementation == "paceline"


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    path = write_family("llama", tmp_path) / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path)
    with pytest.raises(ExportError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(tmp_path))


def test_a_broken_weights_file_is_one_line(tmp_path: Path) -> None:
    path = write_family("llama", tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ExportError, match="cannot be read"):
        load_model(str(tmp_path))


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    write_family("llama", tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ExportError, match="merge it"):
        load_model(str(tmp_path))


def test_a_folder_that_is_not_there_is_no_hub_id(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no such folder"):
        load_model(str(tmp_path / "nothing"))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="cannot be reached") as refusal:
        load_model("nobody/nothing-of-this-name")
    assert "\n" not in str(refusal.value)


def test_sixteen_bit_weights_are_computed_in_float32_and_remembered(tmp_path: Path) -> None:
    write_family("llama", tmp_path, dtype=torch.bfloat16)
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    loaded = load_model(str(tmp_path))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert (loaded.dtype, loaded.licence, loaded.name) == ("bfloat16", "apache-2.0", tmp_path.name)


# Frequencies that depend on the context limit.


def test_dynamic_frequencies_are_plain_up_to_the_original_context() -> None:
    rope = Rope(kind="dynamic", original_context=32, dim=8, base=10000.0, factor=4.0)
    plain = 10000.0 ** -(np.arange(0, 8, 2) / 8)
    assert np.allclose(frequencies(rope, 10)[0], plain, rtol=1e-6)
    assert np.allclose(frequencies(rope, 32)[0], plain, rtol=1e-6)
    assert (frequencies(rope, 64)[0][1:] < plain[1:] * 0.9).all()


def test_longrope_changes_over_just_above_the_original_context() -> None:
    rope = Rope(
        kind="longrope",
        original_context=32,
        dim=4,
        short=[1.0, 0.5],
        long=[0.5, 0.1],
        short_scale=1.0,
        long_scale=1.2,
    )
    assert frequencies(rope, 32)[0].tolist() == pytest.approx([1.0, 0.5])
    assert frequencies(rope, 33)[0].tolist() == pytest.approx([0.5, 0.1])
    assert frequencies(rope, 33)[1] == 1.2


def test_a_context_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        frequencies(Rope(kind="dynamic", original_context=32, dim=8), 0)
