"""Heads that do not fit or are damaged: one line with the cause and a remedy, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

pytest.importorskip("torch")
pytest.importorskip("transformers")

from command_line import call
from small_checkpoints import write_checkpoint
from small_heads import TAPS, Tensors, small_config, small_tensors, write_small_head

from paceline import load
from paceline.export.errors import ExportError
from paceline.export.heads.adding import add_heads, notes_on
from paceline.export.heads.check import lesson_of
from paceline.export.heads.checkpoint import read_head
from paceline.export.heads.config import TargetId, target_id
from paceline.export.heads.head import Head
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.manifest import read_manifest

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    export_bundle(Order(str(model), taps=TAPS), out)
    return out


@pytest.fixture
def head(bundle: Path, tmp_path: Path) -> Path:
    return write_small_head(tmp_path / "head", small_config(read_manifest(bundle).target, "eagle3"))


def spoilt(config: Any, change: Callable[[Tensors], object]) -> Tensors:
    tensors = small_tensors(config)
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("layer.q.weight"), "it lacks layer.q.weight"),
        (lambda t: t.update({"layer.q.bias": np.zeros(48, np.float32)}), "it has besides layer.q.bias"),
        (
            lambda t: t.update({"fc.weight": np.zeros((48, 48), np.float32)}),
            r"other shapes: fc.weight \[48, 48\] in place of \[48, 144\]",
        ),
        (
            lambda t: (t.pop("vocabulary"), t.update({"d2t": np.zeros(160, np.int64)})),
            "it lacks vocabulary; it has besides d2t",
        ),
        (lambda t: t["head.weight"].__setitem__((3, 4), np.nan), "head.weight holds 1 of 7680 numbers"),
        (lambda t: t["vocabulary"].__setitem__(0, -1), "ascending ids below 320"),
        (lambda t: t["vocabulary"].__setitem__(-1, 320), "ascending ids below 320"),
        (lambda t: t.update({"vocabulary": t["vocabulary"][::-1].copy()}), "ascending ids below 320"),
        (
            lambda t: t.update({"embed.weight": t["embed.weight"].astype(np.int8)}),
            "embed.weight holds I8 and not F32",
        ),
        (
            lambda t: t.update({"vocabulary": t["vocabulary"].astype(np.float32)}),
            "vocabulary holds F32 and not I32",
        ),
    ],
)
def test_weights_that_are_not_the_heads_are_refused(
    bundle: Path, tmp_path: Path, change: Callable[[Tensors], object], says: str
) -> None:
    config = small_config(read_manifest(bundle).target, "eagle3")
    folder = write_small_head(tmp_path / "head", config, spoilt(config, change))
    with pytest.raises(ExportError, match=says) as refusal:
        read_head(folder, 2)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"paceline_head": None}, "is no head"),
        ({"paceline_head": 2}, "only 1: upgrade paceline"),
        ({"method": "ppd"}, "method"),
        ({"depth": 0}, "depth"),
        ({"hidden": 2**40}, "hidden"),
        ({"vocab": 400}, "a vocabulary of 400 out of the target's 320"),
        ({"taps": ["hidden", "hidden"]}, "the same tap twice"),
        ({"taps": ["last"]}, "taps"),
        ({"heads": 3}, "3 heads do not share 2 key heads evenly"),
        ({"epsilon": None}, "epsilon"),
        ({"more": 1}, "more"),
        ({"method": "medusa", "tied": True}, "no table of tokens"),
    ],
)
def test_a_configuration_that_is_none_is_refused(
    bundle: Path, tmp_path: Path, keys: dict[str, Any], says: str
) -> None:
    config = small_config(read_manifest(bundle).target, "eagle3")
    folder = write_small_head(tmp_path / "head", config, **keys)
    with pytest.raises(ExportError, match=says) as refusal:
        read_head(folder, 2)
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_read_is_refused(head: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no such folder"):
        read_head(tmp_path / "nowhere", 2)
    raw = (head / "model.safetensors").read_bytes()
    (head / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ExportError, match=r"model\.safetensors cannot be read .*: train or fetch it again"):
        read_head(head, 2)
    (head / "model.safetensors").unlink()
    with pytest.raises(ExportError, match=r"has no model\.safetensors"):
        read_head(head, 2)
    (head / "config.json").write_text("{")
    with pytest.raises(ExportError, match="not valid JSON"):
        read_head(head, 2)


def test_a_head_of_this_target_or_of_one_that_it_does_not_name_gets_no_note(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    own, nobody = target_id(manifest), TargetId(name="", graph="", data="")
    others = own, nobody, replace(own, name="another", graph="0" * 64), replace(own, data="0" * 64)
    notes = []
    for target in others:
        config = replace(small_config(manifest.target, "medusa"), target=target)
        notes.append(len(notes_on({"small": Head(config, {}, np.arange(1), "unknown")}, manifest)))
    assert notes == [0, 0, 0, 1]


@pytest.mark.filterwarnings("error")
def test_huge_weights_say_nothing_of_numpy(bundle: Path, tmp_path: Path) -> None:
    config = small_config(read_manifest(bundle).target, "medusa", depth=1)
    folder = write_small_head(tmp_path / "head", config, spoilt(config, _huge))
    with pytest.raises(ExportError, match="disagrees with numpy"):
        add_heads(bundle, {"small": str(folder)}, tmp_path / "out")


def _huge(tensors: Tensors) -> None:
    tensors["fc.weight"] *= np.float32(1e30)


@pytest.mark.parametrize("changes", [{"hidden": 60}, {"target_vocab": 640}])
def test_a_head_of_another_target_is_refused(bundle: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = small_config(read_manifest(bundle).target, "medusa", **changes)
    folder = write_small_head(tmp_path / "head", config)
    with pytest.raises(ExportError, match=r"the head small was trained for a target with .* train a head"):
        add_heads(bundle, {"small": str(folder)}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_brings_its_taps_to_a_finished_bundle(
    model: Path, bundle: Path, head: Path, tmp_path: Path
) -> None:
    """They are those of a target that was exported with them, and the head drafts."""
    export_bundle(Order(str(model)), tmp_path / "plain")
    done = call("export", tmp_path / "plain", tmp_path / "out", "--head", f"small={head}", "-q")
    assert done.code == 0, done.err
    made = read_manifest(tmp_path / "out").target
    assert made.taps == list(TAPS)
    read = [lesson_of(folder, made, TAPS, range(40)).features for folder in (tmp_path / "out", bundle)]
    assert np.array_equal(*read)
    with load(tmp_path / "out", drafter="small", threads=1) as session:
        session.generate("the cat sat on", max_tokens=30).read()
        assert session.stats.drafted > 0


def test_a_model_gets_its_taps_by_itself(model: Path, head: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call("export", model, out, "--head", f"small={head}", "--head-quant", "int4", "--json", "-q")
    found = done.json()["heads"]["small"]
    manifest = open_bundle(out).manifest
    assert manifest.target.taps == list(TAPS)
    assert manifest.drafters["small"].kind == "head"
    assert (found["method"], found["quant"], found["depths"]) == ("eagle3", "int4", [1, 2, 3, 4, 6, 8])
    assert len(found["kept"]) == 8
    assert found["acceptance"] == [0.5, 0.25]


def test_a_finished_bundle_gets_heads_and_stays_what_it_is(bundle: Path, head: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    (bundle / "LICENSE").write_text("as you like")
    (head / "README.md").write_text("---\nlicense: mit\n---\n")
    try:
        done = call("export", bundle, tmp_path / "out", "--head", f"one={head}", "--head", f"two={head}")
        assert done.code == 0, done.err
        assert (tmp_path / "out" / "LICENSE").read_text() == "as you like"
    finally:
        (bundle / "LICENSE").unlink()
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    assert "one: its own licence is mit, that of the bundle unknown" in done.err
    assert "one: trained for another export (tiny): answers stay exact, but it may draft badly" in done.err
    assert "one: eagle3 head" in done.out
    assert "chooses as the trained head does" in done.out
    assert "accepted in training: 50%, 25%, by depth" in done.out
    manifest = open_bundle(tmp_path / "out").manifest
    assert list(manifest.drafters) == ["one", "two"]
    assert manifest.target == read_manifest(bundle).target
    again = call("export", tmp_path / "out", tmp_path / "more", "--head", f"one={head}", "-q")
    assert again.code == 1
    assert "has a drafter 'one' already" in again.err


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--head", "small=HEAD", "--quant", "int8"], 1, "--quant cannot change a bundle that is finished"),
        (["--head", "small=HEAD", "--eval", "text"], 1, "--eval cannot change"),
        (["--head", "small"], 2, "NAME=DIR"),
        (["--head", "none=HEAD"], 1, "may not be named 'none'"),
        ([], 1, "is a bundle already"),
    ],
)
def test_what_does_not_go_together_is_refused(
    bundle: Path, head: Path, tmp_path: Path, options: list[str], code: int, says: str
) -> None:
    given = [word.replace("HEAD", str(head)) for word in options]
    done = call("export", bundle, tmp_path / "out", *given, "-q")
    assert done.code == code
    assert says in done.err
    assert not (tmp_path / "out").exists()


def test_head_quant_alone_is_refused(model: Path, tmp_path: Path) -> None:
    done = call("export", model, tmp_path / "out", "--head-quant", "int4", "-q")
    assert done.code == 1
    assert "--head-quant is for heads" in done.err
