"""GGUF without torch: the bundle is that of torch, byte for byte, and needs neither torch nor transformers."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from command_line import call
from gguf import GGMLQuantizationType as Kind
from gguf_files import FAMILIES, Changes, make_model, tensors_of, write_model
from hub_server import hub_for
from same_bundles import assert_same

from paceline.export.errors import ExportError
from paceline.export.gguf.unpack import unpack
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.export.plain.decoder import Decoder, decoder_of
from paceline.export.plain.forward import logits_of
from paceline.export.plain.graph import plain_graph
from paceline.export.plain.pipeline import export_plain
from paceline.export.positions import plain_frequencies

pytestmark = pytest.mark.export

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama of one layer and one key head": (
        "llama",
        {"num_hidden_layers": 1, "num_key_value_heads": 1, "tie_word_embeddings": False},
    ),
    "llama of five layers, every head its own keys": (
        "llama",
        {"num_hidden_layers": 5, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "intermediate_size": 160},
    ),
    "mistral, window beyond the context": ("mistral", {"sliding_window": 4096}),
    "qwen2, apart": ("qwen2", {"tie_word_embeddings": False, "num_hidden_layers": 3, "hidden_size": 96}),
    "qwen3, tied": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True, "num_hidden_layers": 3}),
}
"""Models besides those of gguf_files: other sizes, ties and windows."""
COVERED = (
    "llama",
    "llama, tied",
    "llama, head of its own width",
    "llama 3",
    "llama, linear",
    "mistral",
    "qwen2",
    "qwen3",
    *SHAPES,
)
NEED_TORCH = {
    "llama, biases": "biases in the architecture llama",
    "qwen2, yarn": "rotary positions of the kind yarn",
    "gemma3": "the architecture gemma3_text",
    "smollm3": "the architecture smollm3",
}
QUICK = ("llama, tied",)


@pytest.fixture(autouse=True)
def more_families(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, family in SHAPES.items():
        monkeypatch.setitem(FAMILIES, name, family)


def mixed_kinds(name: str) -> Kind:
    """A file in several formats, as Q4_K_M files are: attention's and the feed-forward's differ."""
    if "attn_v" in name or "token_embd" in name:
        return Kind.Q8_0
    return Kind.Q4_1 if "ffn_down" in name else Kind.Q5_0


@pytest.mark.parametrize(
    "family", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in COVERED]
)
def test_the_bundle_is_that_of_torch_byte_for_byte(family: str, tmp_path: Path) -> None:
    changes = Changes({"tokenizer.chat_template": "{{ messages[0].content }}"}, kind=mixed_kinds)
    path = write_model(tmp_path / "model.gguf", make_model(family), changes=changes)
    order = Order(str(path))
    export_bundle(order, tmp_path / "torch")
    report = export_plain(order, tmp_path / "plain")
    assert_same(tmp_path / "torch", tmp_path / "plain")
    assert report.parts["target"].agreement.relative < 1e-4
    assert report.parts["target"].reference == "numpy"


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["cpu", "portable"])
def test_so_it_is_in_floats_and_with_a_drafter(profile: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", make_model("llama"), changes=Changes(kind=lambda name: Kind.F16))
    small = write_model(tmp_path / "s.gguf", make_model("qwen3", seed=5))
    order = Order(str(path), drafters={"small": str(small)}, quant="none", profile=profile)
    export_bundle(order, tmp_path / "torch")
    export_plain(order, tmp_path / "plain")
    assert_same(tmp_path / "torch", tmp_path / "plain")


def test_so_it_is_with_static_graphs_beside_the_kernels(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", make_model("llama"), changes=Changes(kind=mixed_kinds))
    sizes = {"static_rows": (1,), "static_contexts": (64,), "static_type": "fp16"}
    order = Order(str(path), profile="cpu+static", **sizes)  # type: ignore[arg-type]
    export_bundle(order, tmp_path / "torch")
    report = export_plain(order, tmp_path / "plain")
    assert_same(tmp_path / "torch", tmp_path / "plain")
    assert any("its static graphs read" in note for note in report.notes)


@pytest.mark.parametrize("family", COVERED)
def test_numpy_computes_what_torch_computes(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    made = unpack(write_model(tmp_path / "m.gguf", model))
    ids = torch.randint(0, 300, (1, 100), generator=torch.Generator().manual_seed(5))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits[0].numpy()
    found = logits_of(decoder_of(made), made.weights.arrays(), ids[0].tolist())
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("family", NEED_TORCH)
def test_what_needs_torch_is_one_line_with_a_remedy(family: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", make_model(family))
    with pytest.raises(ExportError, match=NEED_TORCH[family]) as refusal:
        export_plain(Order(str(path)), tmp_path / "out")
    assert "needs torch: pip install 'paceline[export]'" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "taps",
    [
        ("hidden.1", "hidden"),
        pytest.param(("hidden",), marks=pytest.mark.slow),
        pytest.param(("hidden.0",), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_so_it_is_with_taps(taps: tuple[str, ...], tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", make_model("llama, tied"), changes=Changes(kind=mixed_kinds))
    order = Order(str(path), taps=taps)
    export_bundle(order, tmp_path / "torch")
    report = export_plain(order, tmp_path / "plain")
    assert_same(tmp_path / "torch", tmp_path / "plain")
    assert report.manifest.target.taps == list(taps)


def test_a_tap_that_there_is_not_is_named(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", make_model("llama"))
    with pytest.raises(ExportError, match=r"no tap 'hidden\.2': taps are 'hidden' and"):
        export_plain(Order(str(path), taps=("hidden.2",)), tmp_path / "out")


@pytest.mark.parametrize("order", [{"quant": "int8"}, {"quant": "int4"}])
def test_so_are_orders_that_need_it(order: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--quant int[48]: exporting this needs torch"):
        export_plain(Order("any.gguf", **order), tmp_path / "out")


def test_a_graph_that_is_another_model_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(tmp_path / "m.gguf", make_model("llama"))

    def turned(decoder: Decoder, weights: Any, taps: tuple[str, ...]) -> Any:
        return plain_graph(replace(decoder, frequencies=decoder.frequencies[::-1].copy()), weights, taps)

    monkeypatch.setattr("paceline.export.plain.pipeline.plain_graph", turned)
    with pytest.raises(ExportError, match="disagrees with numpy"):
        export_plain(Order(str(path)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: t.pop("blk.1.ffn_up.weight"),
            "lacks weights of llama, such as model.layers.1.mlp.up_proj.weight",
        ),
        (lambda t: t.update({"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}), "attn_q_norm"),
        (
            lambda t: t.update({"output_norm.weight": np.ones(32, np.float32)}),
            r"has the shape \[32\] in the weights",
        ),
        (lambda t: t["output_norm.weight"].fill(np.nan), "64 of 64 numbers that are NaN or infinite"),
    ],
)
def test_tensors_that_are_not_the_familys_are_refused(change: Any, says: str, tmp_path: Path) -> None:
    from gguf_files import byte_level_keys, keys_of, write_file
    from small_checkpoints import small_tokenizer

    model = make_model("llama")
    tensors = tensors_of(model)
    change(tensors)
    path = write_file(
        tmp_path / "m.gguf", keys_of(model.config) | byte_level_keys(small_tokenizer()), tensors
    )
    with pytest.raises(ExportError, match=says):
        export_plain(Order(str(path)), tmp_path / "out")


def test_frequencies_are_those_of_transformers_up_to_their_last_digit() -> None:
    exponents = torch.arange(0, 64, 2, dtype=torch.int64).float() / 64
    theirs = (1.0 / (100000.0**exponents)).numpy()
    ours = plain_frequencies({"rope_type": "linear", "rope_theta": 100000.0, "factor": 4.0}, 32)
    assert np.abs(ours * 4 / theirs - 1).max() < 1.3e-7


_WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "optimum", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
sys.meta_path.insert(0, Absent())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ("torch", "transformers") else real(name, package)
from paceline.main import main
sys.exit(main(sys.argv[1:]))
"""


def without_torch(*words: object, script: str = _WITHOUT) -> subprocess.CompletedProcess[str]:
    """The command line in a process that has no torch."""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, timeout=600
    )


def test_the_command_line_needs_no_torch(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", make_model("llama"))
    done = without_torch("export", path, tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    assert "its graph against numpy with the same weights, 74 rows" in done.stdout
    assert call("run", "--raw", "-b", tmp_path / "bundle", "-n", "4", "Hello").code == 0
    folder = without_torch("export", tmp_path / "nowhere", tmp_path / "other")
    assert folder.returncode == 1
    assert folder.stderr.count("\n") == 1


def test_nor_do_heads(tmp_path: Path) -> None:
    from small_heads import small_config, write_small_head

    path = write_model(tmp_path / "m.gguf", make_model("llama"))
    target = export_plain(Order(str(path)), tmp_path / "plain").manifest.target
    config = small_config(target, "eagle3", taps=["hidden.0", "hidden"], depth=2)
    head = write_small_head(tmp_path / "head", config)
    script = _WITHOUT.replace(', "safetensors"', "")
    done = without_torch("export", path, tmp_path / "bundle", "--head", f"small={head}", script=script)
    assert done.returncode == 0, done.stderr
    assert "small: eagle3 head" in done.stdout
    words = ("run", "--raw", "-b", tmp_path / "bundle", "-n", "8", "Hello")
    assert call(*words, "--drafter", "small").out == call(*words, "--drafter", "none").out


def test_pull_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_model(tmp_path / "m.gguf", make_model("qwen3")).read_bytes()
    with hub_for(tmp_path, monkeypatch) as hub:
        hub.add("me/Tiny-GGUF", {"tiny.gguf": raw})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        done = without_torch("pull", "me/Tiny-GGUF", "--name", "tiny")
        assert done.returncode == 0, done.stderr
        assert call("run", "--raw", "-b", "tiny", "-n", "4", "Hello").code == 0
