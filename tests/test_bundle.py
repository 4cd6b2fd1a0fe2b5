"""A bundle is what its manifest says, whole and nothing else, or it is refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bundle_copy import Edit, edit, refused

import paceline.runtime.bundle.bundle as bundle_module
from paceline.embedded import embedded_bundle
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.bundle.measurements import cache_folder
from paceline.runtime.loaded import Shared
from paceline.runtime.loading import load
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.passes import Bound
from paceline.runtime.settings import context_limit


@pytest.mark.parametrize("name", ["tokenizer.json", "target/model.onnx.data", "chat_template.jinja"])
def test_a_file_that_is_not_listed_is_refused(folder: Path, name: str) -> None:
    open_bundle(folder)
    edit(folder, lambda m: m["files"].pop(name))
    refused(lambda: open_bundle(folder), name)


@pytest.mark.parametrize("name", ["extra.json", "target/README.md", "target/.hidden", "drafters/x.so"])
def test_a_file_that_was_added_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("x")
    refused(lambda: open_bundle(folder), name, "not in the manifest")


def test_names_that_nothing_reads_are_passed_over(folder: Path) -> None:
    (folder / ".cache").mkdir()
    for name in ("README.md", "LICENSE", ".gitattributes", ".cache/x", ".DS_Store"):
        (folder / name).write_text("x")
    open_bundle(folder)


def test_what_a_desktop_leaves_is_passed_over_at_the_top_alone(folder: Path, tmp_path: Path) -> None:
    inside = folder / "target/.DS_Store"
    inside.write_text("x")
    refused(lambda: open_bundle(folder), "target/.DS_Store", "not in the manifest")
    inside.unlink()
    (tmp_path / "secret").write_text("x")
    os.link(tmp_path / "secret", folder / ".DS_Store")
    refused(lambda: open_bundle(folder), ".DS_Store", "not in the manifest")


def test_a_bundle_that_was_copied_by_hard_links_opens(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text("x")
    open_bundle(Path(shutil.copytree(folder, tmp_path / "twin", copy_function=os.link)))


def test_folders_in_each_other_are_counted(folder: Path) -> None:
    (folder / "target/a/b/c/d/e/f/g").mkdir(parents=True)
    open_bundle(folder)
    (folder / "target" / "/".join("a" * 300)).mkdir(parents=True)
    refused(lambda: open_bundle(folder), "folders in each other")


def changed_in_place(path: Path) -> None:
    """Other bytes, with size and time as they were."""
    stamp = path.stat()
    with path.open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stamp.st_size, stamp.st_mtime_ns)


@pytest.mark.parametrize("name", ["tokenizer.json", "target/model.onnx", "generation.json"])
def test_a_file_that_was_changed_in_place_is_refused(folder: Path, name: str) -> None:
    open_bundle(folder)
    changed_in_place(folder / name)
    refused(lambda: open_bundle(folder), name, "damaged")


def test_a_digest_is_remembered_until_all_is_to_be_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    verify = bundle_module._verify_digest
    monkeypatch.setattr(
        bundle_module, "_verify_digest", lambda path, file: (read.append(path.name), verify(path, file))
    )
    files = len(open_bundle(folder).manifest.files)
    assert len(read) == files
    open_bundle(folder)
    assert len(read) == files
    open_bundle(folder, reread=True)
    assert len(read) == 2 * files


@pytest.mark.parametrize("name", ["target/model.fp16.onnx", "target/model.onnx.data", "tokenizer.json"])
def test_what_is_read_is_what_was_verified(folder: Path, name: str) -> None:
    """A file that changes between the two is refused, one that only looks changed is not."""
    if name.endswith(".data"):  # a link of the file system, for the copy is large
        twin = folder / "twin"
        shutil.copy2(folder / name, twin)
        twin.replace(folder / name)
    bundle = open_bundle(folder)
    os.utime(folder / name, ns=(1, 1))
    graph, part = bundle.manifest.target.caches["fp16"], bundle.manifest.target
    shared = Shared(bundle)
    shared.graph(graph, part, find_device("cpu"), 1)
    shared.drop_graphs([part])
    changed_in_place(folder / name)

    def load_again() -> None:
        Shared(bundle).graph(graph, part, find_device("cpu"), 1)

    refused(load_again, name, "damaged")


def test_a_manifest_is_read_only_where_and_as_far_as_it_may_be(folder: Path, tmp_path: Path) -> None:
    path = folder / "manifest.json"
    os.truncate(path, 2_000_000_000)
    refused(lambda: open_bundle(folder), "manifest.json", "16777216 bytes")
    for outside in (tmp_path / "other.json", Path("/proc/self/mem"), Path("/dev/zero")):
        (tmp_path / "other.json").write_text("{}")
        path.unlink()
        path.symlink_to(outside)
        refused(lambda: open_bundle(folder), "manifest.json")


def test_what_is_remembered_is_no_pipe_and_for_its_owner_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "one" / "two"))
    old = os.umask(0)
    try:
        open_bundle(folder)
    finally:
        os.umask(old)
    for place in (tmp_path / "one", tmp_path / "one" / "two"):
        assert place.stat().st_mode & 0o777 == 0o700
    kept = tmp_path / "one" / "two" / "verified.json"
    assert kept.is_file()
    for make in (os.mkfifo, lambda path: os.truncate(path, 1 << 40), lambda path: path.write_text("[]")):
        kept.unlink()
        if make is not os.mkfifo:
            kept.write_text("")
        make(kept)
        open_bundle(folder)


def test_a_graph_that_the_exporter_never_writes_is_refused_before_anything_is_loaded(folder: Path) -> None:
    path = folder / "drafters/small/model.int8.onnx"
    path.write_bytes(path.read_bytes().replace(b"Reshape", b"Resize7"))
    known = _file(path)
    edit(folder, lambda m: m["files"].update({"drafters/small/model.int8.onnx": known}))
    refused(lambda: open_bundle(folder), "drafters/small/model.int8.onnx", "Resize7")


def test_opening_and_running_starts_no_other_program(tmp_path: Path) -> None:
    script = """
import sys
sys.addaudithook(lambda event, args: event in ("subprocess.Popen", "os.posix_spawn", "os.exec", "os.fork",
                 "os.system") and print("started", args[:2]))
from paceline.main import main
sys.argv = ["paceline", "run", "hi", "--max-tokens", "2", "--memory", "400MB"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PACELINE_CACHE": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "started" not in done.stdout


def test_links_that_are_not_listed_are_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name, to in (("aside", outside), ("note", tmp_path / "absent")):
        (folder / name).symlink_to(to)
        refused(lambda name=name: open_bundle(folder), name, "not in the manifest")
        (folder / name).unlink()


def moved_to_blobs(folder: Path, blobs: Path) -> None:
    blobs.mkdir(parents=True)
    shutil.move(folder / "tokenizer.json", blobs / "b")
    (folder / "tokenizer.json").symlink_to(blobs / "b")


def test_links_lead_out_only_in_a_hubs_cache(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "models--a--b"
    snapshot = model / "snapshots" / "0123"
    shutil.copytree(folder, snapshot / "inner")
    shutil.copytree(folder, snapshot, dirs_exist_ok=True)
    moved_to_blobs(snapshot / "inner", model / "blobs")
    open_bundle(snapshot / "inner")
    shutil.rmtree(snapshot / "inner")
    shutil.rmtree(model / "blobs")
    moved_to_blobs(snapshot, model / "blobs")
    open_bundle(snapshot)
    other = Path(shutil.copytree(folder, tmp_path / "some" / "other" / "bundle"))
    moved_to_blobs(other, tmp_path / "some" / "blobs")
    refused(lambda: open_bundle(other), "outside the bundle")


def _target(**sizes: object) -> Edit:
    return lambda m: m["target"].update(sizes)


def _rope(**values: object) -> Edit:
    return _target(rope={"kind": "dynamic", "original_context": 64, "dim": 64, **values})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_target(layers=6), ["target/model.fp16.onnx", "cache_k.6"]),
        (_target(layers=9), ["target/model.fp16.onnx", "cache_k.8"]),
        (_target(kv_heads=1), ["cache_k.0 [1, S, 64]", "[2, S, 64]"]),
        (_target(head_dim=3), ["[2, S, 3]", "[2, S, 64]"]),
        (_target(vocab=4097), ["logits [R, 4097]", "[R, 4096]"]),
        (_target(taps=["hidden"]), ["output hidden"]),
        (_rope(), ["input inv_freq"]),
    ],
)
def test_sizes_that_are_not_the_graphs_are_refused(folder: Path, change: Edit, words: list[str]) -> None:
    edit(folder, change)
    refused(lambda: load(folder, drafter="none", threads=1), *words)


def test_a_drafter_of_wrong_sizes_is_refused(folder: Path) -> None:
    edit(folder, lambda m: m["drafters"]["small"].update(head_dim=64))
    refused(lambda: load(folder, drafter="small", threads=1), "drafters/small/model.fp16.onnx", "[1, S, 32]")


@pytest.mark.parametrize(
    "change",
    [
        _target(vocab=2**40),
        _target(layers=2000),
        _target(taps=["hi\u001bdden"]),
        _target(architecture="x" * 300),
        _target(graph="model.onnx"),
        _rope(dim=2),
        _rope(dim=5),
        _rope(kind="longrope", short=[1.0], long=[1.0]),
        lambda m: m.update(name="a\u001b[2Jb"),
        lambda m: m.update(licence="a\nb"),
        lambda m: m["producer"].update(torch="\u202e"),
        lambda m: m.update(schema=0),
        lambda m: m.update(schema=-1),
    ],
)
def test_values_that_make_no_sense_are_refused_with_the_manifest(folder: Path, change: Edit) -> None:
    edit(folder, change)
    refused(lambda: open_bundle(folder), "manifest.json")


def test_names_in_any_script_are_fine(folder: Path) -> None:
    edit(folder, lambda m: m.update(name="Märchenerzähler 物語"))
    assert open_bundle(folder).manifest.name == "Märchenerzähler 物語"


@pytest.mark.parametrize("eos", [-1, 10**23])
def test_ends_that_are_no_token_ids_are_refused(folder: Path, eos: int) -> None:
    path = folder / "generation.json"
    path.write_text(json.dumps({"eos_ids": [eos]}))
    known = _file(path)
    edit(folder, lambda m: m["files"].update({"generation.json": known}))
    refused(lambda: open_bundle(folder), "generation.json")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"banned": [10**6]}, "a token of banned is 1000000"),
        ({"not_before": {"4096": 3}}, "a token of not_before is 4096"),
        ({"phrases": [{"tokens": [5, 5000], "bias": 1}]}, "a token of phrases is 5000"),
        ({"phrases": [{"tokens": [], "bias": 1}]}, "a phrase"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram is -1"),
        ({"temperature": 1e-4}, "temperature is 0.0001"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"frequency_penalty": 1e308}, "frequency_penalty"),
    ],
    ids=str,
)
def test_settings_that_no_answer_could_follow_are_refused_with_their_file(
    folder: Path, settings: dict[str, object], word: str
) -> None:
    path = folder / "generation.json"
    path.write_text(json.dumps({"eos_ids": [0], **settings}))
    known = _file(path)
    edit(folder, lambda m: m["files"].update({"generation.json": known}))
    refused(lambda: open_bundle(folder), "generation.json", word)


def _file(path: Path) -> dict[str, object]:

    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_home_that_does_not_exist_is_an_error_of_one_line() -> None:
    refused(lambda: open_bundle(Path("~nosuchuser/x")), "~nosuchuser")


def test_a_user_without_a_home_runs_without_a_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("PACELINE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() is None
    open_bundle(folder)


def test_the_home_folder_may_be_named_in_the_cache_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_CACHE", "~/models")
    assert cache_folder() == Path.home() / "models"
    monkeypatch.setenv("PACELINE_CACHE", "~nosuchuser/models")
    assert cache_folder() is None


def test_what_onnx_runtime_refuses_is_an_error_of_the_bundle() -> None:
    bundle = open_bundle(embedded_bundle())
    part = bundle.manifest.drafters["small"]
    graph = Graph(bundle.path(part.graph), find_device("cpu"), 1, part)
    model = Model(graph, part, context_limit(part, 16), widest=4)
    refused(lambda: Bound(graph, {"nonsense": np.zeros(1, np.int64)}, {}), "drafters/small/model.onnx")
    refused(lambda: model.prefill([part.vocab + 5]), "drafters/small/model.onnx")  # an id the table lacks
    model.rewind(0)
    model.prefill([1, 2])


def test_the_processor_is_one_by_whatever_name() -> None:
    bundle = open_bundle(embedded_bundle())
    part = bundle.manifest.drafters["small"]
    graph = Graph(bundle.path(part.graph), find_device("cpu:0"), 1, part)
    assert Model(graph, part, 16, widest=4).extend([1, 2]).shape == (part.vocab,)
