"""What the exporter is given by mistake: one line that names the cause."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from small_checkpoints import add_json, small_tokenizer, write_checkpoint

from paceline.errors import one_line
from paceline.export.errors import ExportError
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.export.source import load_model

pytestmark = pytest.mark.export
UP = "model.layers.1.mlp.up_proj.weight"


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(ExportError) as caught:
        export_bundle(Order(str(folder)), folder.parent / "bundle")
    said = str(caught.value)
    assert "\n" not in said
    assert [word for word in words if word not in said] == []
    assert not (folder.parent / "bundle").exists()


@pytest.mark.parametrize("tokenizer", [False, True])
def test_an_adapter(tmp_path: Path, tokenizer: bool) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    add_json(folder, "adapter_config.json", peft_type="LORA", r=8)
    save_file({"layers.0.q_proj.lora_A.weight": torch.zeros(8, 64)}, folder / "adapter_model.safetensors")
    if tokenizer:
        small_tokenizer().save(str(folder / "tokenizer.json"))
    refused(folder, "adapter", "merge")


def test_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    refused(tmp_path / "model.bin", "is a file", "GGUF")


def test_an_embedding_that_was_resized_without_its_configuration(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    add_json(folder, "config.json", vocab_size=310)
    refused(folder, "embed_tokens", "[320, 48]", "[310, 48]")


@pytest.mark.parametrize(
    ("content", "says"),
    [({"name": "another program"}, "has no model_type"), ([], "a JSON list and no object")],
)
@pytest.mark.parametrize("tokenizer", [False, True])
def test_the_configuration_of_another_program(
    tmp_path: Path, content: object, says: str, tokenizer: bool
) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(content))
    if not tokenizer:
        (folder / "tokenizer.json").unlink()
    refused(folder, "config.json", says)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ((), "has no config.json"),
        (("manifest.json",), "is a bundle already"),
        (("model_index.json", "unet/config.json"), "diffusers"),
        (("checkpoint-500/config.json",), "checkpoint-500 has one: export that folder"),
        (("snapshots/0f3a/config.json",), "0f3a has one: export that folder"),
    ],
)
def test_a_folder_that_is_no_model_is_named_for_what_it_is(
    tmp_path: Path, files: tuple[str, ...], says: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    refused(folder, says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "has no tokenizer"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "unheard_of"}, "'unheard_of'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantised"),
        ({"vocab_size": 310}, "embed_tokens"),
    ],
)
def test_what_a_model_is_comes_before_its_tokenizer(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    folder = write_checkpoint(tmp_path / "model")
    add_json(folder, "config.json", **changes)
    (folder / "tokenizer.json").unlink()
    refused(folder, says)


def test_a_draft_model_is_looked_at_before_anything_is_exported(tmp_path: Path) -> None:
    target, drafter = write_checkpoint(tmp_path / "model"), write_checkpoint(tmp_path / "small")
    (drafter / "adapter_config.json").write_text("{}")
    stages: list[str] = []
    with pytest.raises(ExportError, match="small is an adapter"):
        export_bundle(
            Order(str(target), drafters={"small": str(drafter)}),
            tmp_path / "bundle",
            progress=lambda part, stage, share: stages.append(stage),
        )
    assert set(stages) == {"find files"}


def test_an_adapter_is_an_adapter_before_its_files_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ExportError, match="is an adapter"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_a_settings_file_that_holds_no_object_is_named(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / name).write_text("[]")
    refused(folder, name, "no object")


def test_double_precision(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", torch.float64)
    refused(folder, "float64", "float32")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none(tmp_path: Path, value: float) -> None:
    folder = write_checkpoint(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights[UP][3, 5] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, UP, "1 of", "NaN or infinite")


def test_weights_that_the_configuration_does_not_know_are_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights |= {f"model.layers.{i}.mlp.up_proj.bias": torch.ones(80) for i in range(2)}
    weights["model.extra"] = torch.ones(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    notes = load_model(str(folder)).notes
    assert [note.partition(" left out")[0] for note in notes] == [
        "model.extra (1 tensor)",
        "model.layers.*.mlp.up_proj.bias (2 tensors)",
    ]
    assert load_model(str(write_checkpoint(tmp_path / "whole"))).notes == ()


def test_a_package_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from paceline import errors

    error = ModuleNotFoundError("no", name="onnxscript._framework_apis.torch_2_11")
    assert "pip install 'paceline[gguf]' (in a clone" in one_line(error)
    torchs = one_line(ModuleNotFoundError("no", name="torch._dynamo"))
    assert "pip install 'paceline[export]' --extra-index-url https://download.pytorch.org/whl/cpu" in torchs
    real = errors.metadata.version
    monkeypatch.setattr(
        errors.metadata, "version", lambda name: "0.1.7" if name == "onnxscript" else real(name)
    )
    for raised in (error, RuntimeError("anything")):
        assert one_line(raised).startswith("onnxscript 0.1.7 is too old")
