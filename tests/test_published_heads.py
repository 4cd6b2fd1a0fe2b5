"""Heads in the layouts in which others publish them: they draft what their own code drafts, or are refused by name."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from published_heads import (
    EAGLE1_CONFIG,
    EAGLE_CONFIG,
    HYDRA_CONFIG,
    eagle1_logits,
    eagle1_tensors,
    eagle_logits,
    eagle_tensors,
    hydra_logits,
    hydra_tensors,
    medusa_logits,
    medusa_tensors,
    write_published,
)
from small_checkpoints import write_checkpoint

from paceline import load
from paceline.export.errors import ExportError
from paceline.export.heads.adding import add_heads
from paceline.export.heads.check import lesson_of
from paceline.export.heads.checkpoint import read_head, read_trained
from paceline.export.heads.reference import Reference
from paceline.export.heads.table import target_head, target_table
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.manifest import read_manifest

pytestmark = pytest.mark.export

LAYERS = 5
ONES = torch.ones(48)
EAGLE_TAPS = ["hidden.1", "hidden.1", "hidden.1"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("target")
    source = write_checkpoint(base / "model", num_hidden_layers=LAYERS)
    export_bundle(Order(str(source), taps=("hidden.0", "hidden.1", "hidden.3", "hidden")), base / "bundle")
    return base / "bundle"


def eagle(folder: Path, table: bool = False, **changes: Any) -> Path:
    config = EAGLE_CONFIG | {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 3]}} | changes
    return write_published(folder, config, eagle_tensors(table), "model.safetensors")


@pytest.mark.parametrize("table", [False, True], ids=["with the target's table", "with a table of its own"])
@pytest.mark.parametrize("quant", ["none", "int8"])
def test_an_eagle3_head_drafts_what_its_own_code_drafts(
    bundle: Path, quant: Any, table: bool, tmp_path: Path
) -> None:
    report = add_heads(bundle, {"e": str(eagle(tmp_path / "e", table))}, tmp_path / "out", quant)
    part = report.heads["e"].part
    assert report.heads["e"].agreement.relative < 1e-4
    assert part.reads == ["hidden.0", "hidden.1", "hidden.3"]
    assert (part.vocab, max(part.drafts)) == (100, 8)
    open_bundle(tmp_path / "out", reread=True)
    manifest, tensors = read_manifest(bundle), eagle_tensors(table)
    head, lesson = (
        read_head(tmp_path / "e", LAYERS),
        lesson_of(bundle, manifest.target, part.reads, range(3, 40)),
    )
    own = torch.from_numpy(target_table(bundle, manifest.target))
    weights = {"embed.weight": own.numpy(), **head.weights}
    states, past = (reference := Reference(head, weights)).read(lesson.tokens, lesson.features)
    followed = head.vocabulary[[5, 70, 3, 99, 12]].tolist()
    found = reference.draft(states[-1:], past, [len(states)], np.array([followed]))[0]
    meant = eagle_logits(
        tensors,
        tensors.get("embed_tokens.weight", own),
        list(lesson.tokens),
        torch.from_numpy(lesson.features),
        followed,
    )
    assert np.abs(found - meant.numpy()).max() < 1e-4


def test_its_blocks_are_those_of_the_original_where_it_names_none(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "e", EAGLE_CONFIG, eagle_tensors(), "model.safetensors")
    assert read_head(folder, 32).config.taps == ["hidden.1", "hidden.15", "hidden.28"]


@pytest.mark.parametrize("bias", [True, False])
def test_an_eagle1_head_drafts_what_its_own_code_drafts(bundle: Path, bias: bool, tmp_path: Path) -> None:
    tensors = eagle1_tensors(bias, table=bias)
    folder = write_published(tmp_path / "e", EAGLE1_CONFIG, tensors, "model.safetensors")
    report = add_heads(bundle, {"e": str(folder)}, tmp_path / "out", "none")
    part = report.heads["e"].part
    assert report.heads["e"].agreement.relative < 1e-4
    assert (part.reads, part.vocab, part.vocabulary, max(part.drafts)) == (["hidden"], 320, None, 8)
    open_bundle(tmp_path / "out", reread=True)
    target = read_manifest(bundle).target
    own, said = target_table(bundle, target), target_head(bundle, target)
    lesson = lesson_of(bundle, target, ["hidden"], range(3, 40))
    hidden = torch.from_numpy(lesson.features)
    head = read_head(folder, LAYERS)
    weights = {"embed.weight": own, "head.weight": said, **head.weights}
    states, past = (reference := Reference(head, weights)).read(lesson.tokens, lesson.features)
    followed = [5, 70, 3, 99, 300]
    found = reference.draft(states[-1:], past, [len(states)], np.array([followed]))[0]
    meant = eagle1_logits(
        tensors,
        tensors.get("embed_tokens.weight", torch.from_numpy(own)),
        torch.from_numpy(said),
        list(lesson.tokens),
        hidden,
        followed,
    )
    assert np.abs(found - meant.numpy()).max() < 1e-4 * meant.abs().max()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: (
                t.pop("layers.0.mlp.up_proj.weight"),
                t.update({"layers.0.input_layernorm.weight": ONES}),
            ),
            "it lacks layers.0.mlp.up_proj.weight; it has besides layers.0.input_layernorm.weight",
        ),
        (
            lambda t: t.update({"fc.weight": torch.ones(48, 48)}),
            r"fc.weight \[48, 48\] in place of \[48, 96\]",
        ),
    ],
)
def test_an_eagle1_layout_that_is_another_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    tensors = eagle1_tensors()
    change(tensors)
    folder = write_published(tmp_path / "e", EAGLE1_CONFIG, tensors, "model.safetensors")
    with pytest.raises(ExportError, match=says) as refusal:
        read_head(folder, LAYERS)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("prefix", "dropout", "blocks"), [(True, True, 2), (True, False, 1), (False, False, 3)]
)
def test_a_hydra_head_drafts_what_its_own_code_drafts(
    bundle: Path, prefix: bool, dropout: bool, blocks: int, tmp_path: Path
) -> None:
    tensors = hydra_tensors(prefix, dropout, blocks)
    config = HYDRA_CONFIG | {"hydra_num_layers": blocks, "hydra_head_arch": "prefix-mlp" if prefix else "mlp"}
    folder = write_published(tmp_path / "h", config, tensors, "hydra_lm_head.safetensors")
    report = add_heads(bundle, {"h": str(folder)}, tmp_path / "out", "int8" if prefix else "none")
    part = report.heads["h"].part
    assert report.heads["h"].agreement.relative < 1e-4
    assert (part.reads, part.layers, list(part.drafts)) == (["hidden"], int(prefix), [1, 2, 3])
    open_bundle(tmp_path / "out", reread=True)
    target = read_manifest(bundle).target
    own = target_table(bundle, target)
    lesson = lesson_of(bundle, target, ["hidden"], range(3, 40))
    head = read_head(folder, LAYERS, target.head_dim)
    reference = Reference(head, {"embed.weight": own, **head.weights})
    states, past = reference.read(lesson.tokens, lesson.features)
    followed, root = [5, 70, 300], lesson.tokens[-1]
    found = reference.draft(states[-1:], past, [len(states)], np.array([followed]), np.array([root]))[0]
    features = torch.from_numpy(lesson.features)
    meant = hydra_logits(tensors, torch.from_numpy(own), features, root, followed, dropout)
    assert np.abs(found - meant.numpy()).max() < 1e-4 * meant.abs().max()
    with load(tmp_path / "out", drafter="h", threads=1) as drafting, load(bundle, drafter="none") as plain:
        told = [made.generate("the cat", max_tokens=24).read().tokens for made in (drafting, plain)]
        assert told[0] == told[1]
        assert drafting.stats.drafted > 0


@pytest.mark.parametrize(
    ("changes", "change", "says"),
    [
        (
            {},
            lambda t: (
                t.pop("hydra_mlp.1.1.res_connection.bias"),
                t.update({"hydra_mlp.1.5.linear.bias": ONES}),
            ),
            "it lacks hydra_mlp.1.1.res_connection.bias; it has besides hydra_mlp.1.5.linear.bias",
        ),
        (
            {"hydra_num_heads": 4},
            None,
            "it lacks hydra_lm_head.3.1.bias, hydra_lm_head.3.1.weight, hydra_mlp.3.1",
        ),
        ({"hydra_head_arch": "eagle-attn"}, None, "of kinds mlp and prefix-mlp"),
        ({"hidden_state_offset": 1}, None, "reads another layer"),
        ({"hydra_num_layers": None}, None, "lacks hydra_num_heads or hydra_num_layers"),
        ({}, lambda t: t.clear(), "is not that of such a head"),
    ],
)
def test_a_hydra_layout_that_is_another_is_refused(
    tmp_path: Path, changes: dict[str, Any], change: Any, says: str
) -> None:
    tensors = hydra_tensors()
    if change is not None:
        change(tensors)
    folder = write_published(tmp_path / "h", HYDRA_CONFIG | changes, tensors, "hydra_lm_head.safetensors")
    with pytest.raises(ExportError, match=says) as refusal:
        read_head(folder, LAYERS, 12)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("prefix", ["", "medusa_head.", "heads."])
def test_a_medusa_head_drafts_what_its_own_code_drafts(bundle: Path, prefix: str, tmp_path: Path) -> None:
    config = {"medusa_num_heads": 2, "medusa_num_layers": 1}  # wrong, as in published folders
    folder = write_published(
        tmp_path / "m", config, medusa_tensors(prefix=prefix), "medusa_lm_head.safetensors"
    )
    report = add_heads(bundle, {"m": str(folder)}, tmp_path / "out", "none")
    part = report.heads["m"].part
    assert (part.reads, list(part.drafts), part.vocabulary) == (["hidden"], [1, 2, 3], None)
    assert report.heads["m"].agreement.relative < 1e-5
    open_bundle(tmp_path / "out", reread=True)
    head = read_head(folder, LAYERS)
    lesson = lesson_of(bundle, read_manifest(bundle).target, ["hidden"], range(3, 20))
    states, past = (reference := Reference(head)).read(lesson.tokens, lesson.features)
    found = reference.draft(states[-1:], past, [len(states)], np.zeros((1, 3), np.int64))[0]
    meant = medusa_logits(medusa_tensors(), torch.from_numpy(lesson.features[-1]), 3)
    assert np.abs(found - meant.numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: (t.pop("midlayer.hidden_norm.weight"), t.update({"fc_norm.weight": torch.ones(48)})),
            "it lacks midlayer.hidden_norm.weight; it has besides fc_norm.weight",
        ),
        (
            lambda t: t.update({"fc.weight": torch.ones(48, 96)}),
            r"fc.weight \[48, 96\] in place of \[48, 144\]",
        ),
        (lambda t: t.pop("d2t"), "it lacks d2t"),
        (lambda t: t["d2t"].fill_(400), "d2t is not a list of ascending ids below 320"),
    ],
)
def test_an_eagle3_layout_that_is_another_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    tensors = eagle_tensors()
    change(tensors)
    folder = write_published(tmp_path / "e", EAGLE_CONFIG, tensors, "model.safetensors")
    with pytest.raises(ExportError, match=says) as refusal:
        read_head(folder, 8)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_attention_heads": "4"}, "lacks num_attention_heads"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "the kind 'llama3'"),
        ({"rope_scaling": "default"}, "the kind 'default' are not carried"),
        ({"rope_scaling": 8}, "the kind '8' are not carried"),
        ({"target_hidden_size": 96}, "another width"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 1]}}, "the same tap twice"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 9]}}, "this target has blocks 0 to 4"),
        ({"draft_vocab_size": 500}, "a vocabulary of 500"),
        ({"num_key_value_heads": 3}, "do not share"),
        ({"architectures": ["LlamaForCausalLM"]}, "nor that of a published EAGLE, Medusa or Hydra head"),
    ],
)
def test_an_eagle3_configuration_that_is_not_carried_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ExportError, match=says) as refusal:
        read_head(eagle(tmp_path / "e", **changes), LAYERS)
    assert "\n" not in str(refusal.value)


def test_a_published_head_is_not_gone_on_with_in_training(tmp_path: Path) -> None:
    config = {"medusa_num_heads": 3, "medusa_num_layers": 1}
    folder = write_published(tmp_path / "m", config, medusa_tensors(), "medusa_lm_head.safetensors")
    with pytest.raises(ExportError, match="is no head"):
        read_trained(folder)


def test_a_medusa_layout_that_is_another_is_refused(tmp_path: Path) -> None:
    tensors = medusa_tensors()
    del tensors["1.0.linear.bias"]
    config = {"medusa_num_heads": 3, "medusa_num_layers": 1}
    folder = write_published(tmp_path / "m", config, tensors, "medusa_lm_head.safetensors")
    with pytest.raises(ExportError, match=r"it lacks 1\.0\.linear\.bias"):
        read_head(folder, LAYERS)


def test_a_pickle_is_not_read_and_the_remedy_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_published(
        tmp_path / "m", {"medusa_num_heads": 3}, medusa_tensors(), "medusa_lm_head.safetensors"
    )
    (folder / "medusa_lm_head.safetensors").unlink()
    torch.save(medusa_tensors(), folder / "medusa_lm_head.pt")
    with pytest.raises(ExportError, match="is a pickle, which can run code") as refusal:
        read_head(folder, LAYERS)
    command = str(refusal.value).split('python -c "')[1].removesuffix('"')
    monkeypatch.chdir(folder)
    exec(command, {})
    assert read_head(folder, LAYERS).config.depth == 3
