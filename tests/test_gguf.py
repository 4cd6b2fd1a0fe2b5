"""Models that come as GGUF files compute what the models that they were made from compute."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from gguf_files import FAMILIES, byte_level_keys, keys_of, make_model, tensors_of, write_file, write_model
from small_checkpoints import small_tokenizer

from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.export.source import load_model

pytestmark = pytest.mark.export
LENGTH = 100
"""Beyond every window, and beyond the length that long-rope models were trained for."""


def logits(model: Any, length: int = LENGTH) -> Any:
    ids = torch.randint(0, 300, (1, length), generator=torch.Generator().manual_seed(5))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(ids, use_cache=False).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model_that_was_written(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    loaded = load_model(str(write_model(tmp_path / "model.gguf", model)))
    expected, found = logits(model), logits(loaded.model)
    assert float((expected - found).abs().max()) < 2e-5 * float(expected.abs().max())
    assert loaded.config.max_position_embeddings == 128


@pytest.mark.slow
def test_a_llama_with_biases_on_queries_keys_and_values_alone(tmp_path: Path) -> None:
    model = make_model("llama, biases of attention")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.bias.zero_()
    tensors = {name: t for name, t in tensors_of(model).items() if not name.endswith("attn_output.bias")}
    assert {"blk.0.attn_q.bias", "blk.1.attn_v.bias"} < tensors.keys()
    path = write_file(
        tmp_path / "model.gguf", keys_of(model.config) | byte_level_keys(small_tokenizer()), tensors
    )
    expected, found = logits(model), logits(load_model(str(path)).model)
    assert float((expected - found).abs().max()) < 2e-5 * float(expected.abs().max())
    report = export_bundle(Order(str(path)), tmp_path / "bundle")
    assert report.parts["target"].agreement.top1 == 1.0


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", "gpt2"))]
)
def test_each_family_becomes_a_bundle(family: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", make_model(family))
    report = export_bundle(Order(str(path)), tmp_path / "bundle")
    assert report.parts["target"].agreement.top1 == 1.0
    assert (report.manifest.name, report.manifest.licence) == ("Tiny Model", "apache-2.0")
