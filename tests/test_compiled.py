"""Compiled forms of graphs: kept once, taken again, made anew where anything is another or damaged."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from plugin_packages import needs_plugin
from small_checkpoints import write_checkpoint

from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.memory.errors import Error
from paceline.runtime.loading import load
from paceline.runtime.manifest import read_manifest, write_manifest
from paceline.runtime.model import compiled
from paceline.runtime.model.compiled import Compiled, compiled_of
from paceline.runtime.model.device import Device
from paceline.runtime.model.providers import CPU, PROVIDERS, Hardware
from paceline.runtime.request import Sampling

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static bundle that runs one graph for a token and one for a prompt."""
    model = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), max_position_embeddings=64)
    order = Order(str(model), profile="static", static_rows=(1,), static_contexts=(64,))
    return export_bundle(order, tmp_path_factory.mktemp("bundles") / "static").folder


@pytest.fixture
def forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


def said(bundle: Path) -> tuple[list[int], str]:
    """The tokens of an answer on QNN, and where its graphs' nodes are."""
    with load(bundle, drafter="none", device="qnn", threads=1) as session:
        tokens = session.generate("the cat sat on", max_tokens=6, sampling=Sampling()).read().tokens
        (graph, *_) = session._shared._graphs.values()
        nodes = graph.session.get_provider_graph_assignment_info()[0].get_nodes()
        return tokens, str(nodes[0].op_type)


def stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_ino, p.read_bytes()) for p in folder.iterdir()}


@needs_plugin("qnn")
def test_a_form_is_made_once_and_then_taken(bundle: Path, forms: Path) -> None:
    first, made = said(bundle)
    kept = stamps(forms)
    assert kept
    assert all(name.endswith(".form") for name in kept)
    assert all(hashlib.sha256(held[32:]).digest() == held[:32] for _, held in kept.values())
    again, taken = said(bundle)
    assert (made != "EPContext", taken) == (True, "EPContext")
    assert again == first
    assert stamps(forms) == kept
    assert forms.stat().st_mode & 0o077 == 0


@needs_plugin("qnn")
@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "sealed nonsense", "another graph's"])
def test_a_damaged_form_is_made_anew(bundle: Path, forms: Path, damage: str) -> None:
    first, _ = said(bundle)
    kept = stamps(forms)
    for path in forms.iterdir():
        held = bytearray(path.read_bytes())
        nonsense = b"no graph at all"
        held[len(held) // 2] ^= 1
        path.write_bytes(
            {
                "flipped": bytes(held),
                "short": bytes(held[:100]),
                "empty": b"",
                "sealed nonsense": hashlib.sha256(nonsense).digest() + nonsense,
                "another graph's": kept[max(kept)][1] if path.name == min(kept) else kept[min(kept)][1],
            }[damage]
        )
    if damage == "another graph's":  # whoever writes that into the user's own folder is told
        with pytest.raises(Error, match="is not the graph of the manifest"):
            said(bundle)
        return
    assert said(bundle)[0] == first
    assert stamps(forms).keys() == kept.keys()
    assert all(hashlib.sha256(held[32:]).digest() == held[:32] for _, held in stamps(forms).values())
    assert said(bundle) == (first, "EPContext")


@needs_plugin("qnn")
def test_without_a_folder_graphs_are_compiled_each_time(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "file"))
    first, made = said(bundle)
    assert said(bundle) == (first, made)
    assert made != "EPContext"


@needs_plugin("qnn")
def test_a_form_of_files_that_changed_meanwhile_is_not_kept(
    bundle: Path, forms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paceline.runtime.bundle.bundle import Bundle

    def changed(self: Bundle, *names: str) -> None:
        if any(name.endswith(".data") for name in names):
            raise Error("changed")

    monkeypatch.setattr(Bundle, "confirm", changed)
    with pytest.raises(Error, match="changed"):
        said(bundle)
    assert not list(forms.iterdir())


QNN = Device("qnn", PROVIDERS["qnn"], 0, Hardware("NPU", {"version": "1"}), "a chip")


@pytest.mark.parametrize(
    "other",
    [
        {"content": ["a", "c"]},
        {"device": replace(QNN, name="qnn:1")},
        {"device": replace(QNN, detail="another chip")},
        {"device": replace(QNN, hardware=Hardware("NPU", {"version": "2"}))},
        {"device": replace(QNN, hardware=Hardware("CPU", {"version": "1"}))},
        {"runtime_version": lambda: "onnxruntime 9"},
        {"provider_version": lambda device: "onnxruntime-qnn 9"},
        {"system": lambda: "another"},
    ],
)
def test_a_form_is_of_its_files_device_and_versions(
    forms: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    same = compiled_of(QNN, 1, ["a", "b"])._place
    assert same == compiled_of(QNN, 1, ["a", "b"])._place
    for name, value in other.items():
        if callable(value):
            monkeypatch.setattr(compiled, name, value)
    assert same != compiled_of(other.get("device", QNN), 1, other.get("content", ["a", "b"]))._place


def test_what_does_not_compile_has_no_form(forms: Path) -> None:
    made = compiled_of(Device("cpu", CPU), 1, ["a"])
    assert made.read() is None
    assert made.wanted() == {}
    made.keep()
    made.drop()
    assert not forms.exists()


def written(place: Path, form: bytes, age: float) -> Path:
    made = Compiled(place)
    Path(made.wanted()["ep.context_file_path"]).write_bytes(form)
    made.keep()
    if place.exists():
        os.utime(place, (1e9 - age, 1e9 - age))
    return place


def test_what_was_not_used_longest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled._MOST == 2 << 30
    monkeypatch.setattr(compiled, "_MOST", 1000)
    old, used = written(tmp_path / "a.form", b"x" * 300, 2), written(tmp_path / "b.form", b"y" * 300, 3)
    stale = tmp_path / "piece-old"
    stale.mkdir()
    os.utime(stale, (1e9, 1e9))
    assert Compiled(used).read() == b"y" * 300
    new = written(tmp_path / "c.form", b"z" * 400, 0)
    assert sorted(tmp_path.iterdir()) == [used, new]
    large = written(tmp_path / "d.form", b"w" * 1001, 0)
    assert not large.exists()
    assert old.exists() is False


def test_a_provider_that_writes_nothing_leaves_nothing(tmp_path: Path) -> None:
    made = Compiled(tmp_path / "a.form")
    assert made.wanted()
    made.keep()
    assert not list(tmp_path.iterdir())


def test_a_bundle_with_a_compiled_graph_is_refused(bundle: Path, tmp_path: Path, careful: str) -> None:
    """Of another's program nobody knows what it does."""
    import shutil

    import onnx

    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (path,) = (copy / "target").glob("prompt.*.onnx")
    graph = onnx.load(path, load_external_data=False)
    node = onnx.helper.make_node("EPContext", ["token_ids"], ["logits"], domain="com.microsoft", embed_mode=1)
    graph.graph.node.insert(0, node)
    path.write_bytes(graph.SerializeToString())
    manifest = read_manifest(copy)
    name = str(path.relative_to(copy))
    file = msgspec.structs.replace(
        manifest.files[name],
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        bytes=path.stat().st_size,
    )
    write_manifest(msgspec.structs.replace(manifest, files=manifest.files | {name: file}), copy)
    with (
        pytest.raises(Error, match=r"com\.microsoft::EPContext"),
        load(copy, drafter="none", device=careful, threads=1) as session,
    ):
        session.generate("the cat sat on the mat", max_tokens=2, sampling=Sampling()).read()
