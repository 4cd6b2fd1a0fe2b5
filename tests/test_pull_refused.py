"""What `paceline pull` refuses: hubs that say no, repositories that are hostile, and those that hold no model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import call
from hub_server import FILES, LARGEST, Hub, changed, hub_for, serving, use

from paceline.store import names, unfinished


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_for(tmp_path, monkeypatch) as hub:
        yield hub


def listing(**changes: object) -> dict[str, bytes]:
    """The bundle with another list of files in its manifest: None drops one."""
    manifest = json.loads(FILES["manifest.json"])
    for path, entry in changes.items():
        manifest["files"][path] = entry
    return {**FILES, "manifest.json": json.dumps(manifest).encode()}


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "private": ({"token": "hf_other"}, "has no such model, or it is private"),
    "gated": ({"gated": True}, "is gated: accept its terms at"),
    "busy": ({"status": 429}, "takes no more requests for now: wait 7 s"),
    "broken": ({"status": 503}, "has trouble (status 503)"),
    "forbidden": ({"status": 403}, "refuses it to this account"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_hub_that_refuses_is_one_line(hub: Hub, what: str) -> None:
    attributes, words = REFUSED[what]
    for name, value in attributes.items():
        setattr(hub, name, value)
    done = call("pull", "me/Tale")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert words in done.err
    assert names() == []
    assert unfinished() == {}


def test_a_hub_that_asks_to_wait_is_waited_for_and_that_is_said(hub: Hub) -> None:
    assert call("pull", "me/Tale", "--name", "first").code == 0
    hub.busy = 1
    done = call("pull", "me/Tale")
    assert done.code == 0
    assert done.err.startswith("paceline: the hub asks to wait for ")
    assert done.err.count("\n") == 1


def test_no_network_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Hub()) as gone:
        pass
    use(gone.url, monkeypatch)
    done = call("pull", "me/Tale")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert f"the connection to {gone.url} failed" in done.err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "unset HF_HUB_OFFLINE" in call("pull", "me/Tale").err
    use("localhost:80", monkeypatch)
    assert "HF_ENDPOINT is 'localhost:80'" in call("pull", "me/Tale").err


ENTRY = {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
HOSTILE: dict[str, tuple[dict[str, bytes], dict[str, object], str]] = {
    "up": (listing(**{"a/../../../x": ENTRY}), {}, "leaves the bundle"),
    "absolute": (listing(**{"/etc/x": ENTRY}), {}, "cannot be used"),
    "backslash": (listing(**{"a\\..\\x": ENTRY}), {}, "cannot be used"),
    "dot": (listing(**{"a/./x": ENTRY}) | {"a/./x": b"abc"}, {}, "which no bundle has"),
    "hidden": (listing(**{".source.json": ENTRY}), {}, "cannot be used"),
    "itself": (listing(**{"manifest.json": ENTRY}), {}, "lists 'manifest.json'"),
    "file and folder": (
        listing(**{"a": ENTRY, "a/b": ENTRY}) | {"a": b"abc", "a/b": b"abc"},
        {},
        "lists 'a/b'",
    ),
    "another's": (listing(**{"more.json": ENTRY}), {}, "lists more.json, which is not there"),
    "huge": (
        listing(**{"huge.data": {"bytes": 2**50, "sha256": "0" * 64}}) | {"huge.data": b"abc"},
        {"lies": {"huge.data": 2**50}},
        "another content",
    ),
    "other size": (FILES, {"lies": {"tokenizer.json": 12}}, "tokenizer.json is not the file of its manifest"),
    "longer": (FILES, {"swapped": {"tokenizer.json": FILES["tokenizer.json"] + b" "}}, "tokenizer.json"),
    "other content": (FILES, {"swapped": {LARGEST: FILES[LARGEST][::-1]}}, "its sha256 is another"),
    "no JSON": (
        {**FILES, "manifest.json": b'{"name": "A page"}'},
        {},
        "me/bad cannot be used: manifest.json",
    ),
    "large manifest": (FILES, {"lies": {"manifest.json": 1 << 30}}, "more than one can have"),
    "graph": (changed(target_model_onnx=b"\x08\x07nonsense"), {}, "me/bad cannot be used: target/model.onnx"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_repository_is_one_line_and_leaves_nothing_outside(
    hub: Hub, what: str, tmp_path: Path
) -> None:
    files, attributes, words = HOSTILE[what]
    hub.add("me/bad", files)
    for name, value in attributes.items():
        setattr(hub, name, value)
    done = call("pull", "me/bad")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert words in done.err
    assert str(tmp_path) not in done.err
    assert names() == []
    assert {path.name for path in tmp_path.iterdir()} <= {"models"}
    call("rm", "bad", "--yes")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = {"bytes": 2**49, "sha256": "0" * 64}
    hub.add("me/huge", listing(**{"NOTICE.bin": huge}) | {"NOTICE.bin": b"abc"})
    hub.lies["NOTICE.bin"] = 2**49
    done = call("pull", "me/huge")
    assert "are still to come and" in done.err
    assert "PACELINE_MODELS" in done.err
    assert hub.fetched() == ["manifest.json"]


OTHERS = {
    "empty": ({}, "holds no files yet"),
    "checkpoint": (
        {"config.json": b"{}", "model.safetensors": b"x"},
        "'paceline export me/other OUT' makes one",
    ),
    "adapter": ({"adapter_config.json": b"{}", "a.safetensors": b"x"}, "is an adapter (LoRA)"),
    "pickles": ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "has pickled weights only"),
    "pictures": ({"cat.png": b"x"}, "is no model that can run here: 1 files"),
    "several": ({"a/manifest.json": b"{}", "b/manifest.json": b"{}"}, "name one of me/other/a, me/other/b"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_model_is_named(hub: Hub, what: str) -> None:
    files, words = OTHERS[what]
    hub.add("me/other", files)
    done = call("pull", "me/other")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert words in done.err


def test_a_folder_that_is_not_there_names_those_that_are(hub: Hub) -> None:
    hub.add("me/many", FILES, "int4")
    assert "me/many/int8 is not there: me/many has the folders int4" in call("pull", "me/many/int8").err


@pytest.mark.parametrize(
    "text", ["", "one", "a/b/..", "/a/b", "a//b", "a/b@", "a b/c", "../x", "a/b/tree/main"]
)
def test_what_names_no_model_is_refused_before_anything_is_asked(hub: Hub, text: str) -> None:
    assert "names no model" in call("pull", text).err
    assert hub.asked == []


def test_pages_can_be_pasted(hub: Hub) -> None:
    assert call("pull", "https://huggingface.co/me/Tale", "--name", "t").code == 0
    assert names() == ["t"]


@dataclasses.dataclass
class _Gone:
    """A finder of modules that hides one."""

    name: str

    def find_spec(self, name: str, *_: object) -> None:
        if name == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_huggingface_hub_the_line_says_how_to_get_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [_Gone("huggingface_hub"), *sys.meta_path])
    done = call("pull", "me/Tale")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "pip install huggingface_hub" in done.err
