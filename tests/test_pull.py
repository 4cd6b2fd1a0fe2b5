"""`paceline pull` from a hub on loopback: what arrives, how it resumes, and what never appears."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import call
from hub_server import COMMIT, FILES, LARGEST, Hub, hub_for, serving, use
from terminal import Terminal, needs_terminal

import paceline
from paceline.store import models_folder, names, unfinished


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_for(tmp_path, monkeypatch) as hub:
        yield hub


def changed(**files: bytes | None) -> dict[str, bytes]:
    """A bundle whose manifest says what its files are; None takes one away. Names have _ for / and -."""
    made = dict(FILES)
    for name, data in files.items():
        path = next(p for p in [*FILES, "NOTES"] if p.replace("/", "_").replace(".", "_") == name)
        if data is not None:
            made[path] = data
    manifest = json.loads(made["manifest.json"])
    for path, data in made.items():
        if path in manifest["files"]:
            manifest["files"][path] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return {**made, "manifest.json": json.dumps(manifest).encode()}


def listing(**changes: object) -> dict[str, bytes]:
    """The bundle with another list of files in its manifest: None drops one."""
    manifest = json.loads(FILES["manifest.json"])
    for path, entry in changes.items():
        manifest["files"][path] = entry
    return {**FILES, "manifest.json": json.dumps(manifest).encode()}


def test_a_bundle_arrives_whole_and_is_used_by_its_name(hub: Hub) -> None:
    hub.add("me/Tale", {"setup.py": b"raise SystemExit", "pytorch_model.bin": b"x" * 99})
    done = call("pull", "me/Tale")
    assert (done.code, done.err) == (0, ""), done.err
    assert "next: paceline run -b Tale" in done.out
    place = models_folder() / "Tale"
    held = {p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*") if p.is_file()}
    about = json.loads(held.pop(".source.json"))
    assert held == FILES
    assert (about["repository"], about["commit"], about["file"]) == ("me/Tale", COMMIT, None)
    assert sorted(hub.fetched()) == sorted(FILES)
    assert unfinished() == {}
    assert os.listdir(models_folder()) == ["Tale"]


def test_afterwards_nothing_is_asked_of_the_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("pull", "me/Tale").code == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.asked.clear()
    expected = call("run", "--raw", "-n", "12", "Once upon a time")
    for words in (["-b", "Tale"], ["Tale"]):
        named = call("run", "--raw", "-n", "12", *words, "Once upon a time")
        assert (named.code, named.out) == (0, expected.out), named.err
    assert call("inspect", "Tale", "--json").json()["folder"] == str(models_folder() / "Tale")
    assert call("plan", "-b", "Tale", "--json").json()["bundle"] == "storyteller"
    assert call("chat", "Tale", stdin="Tell me a story.\n").code == 0
    assert call("bench", "-b", "Tale", "--perplexity", __file__).code == 0
    with paceline.load("Tale") as session:
        assert session.bundle.folder == models_folder() / "Tale"
    assert hub.asked == []


def test_a_subfolder_a_revision_and_a_name(hub: Hub) -> None:
    hub.add("me/many", FILES, "int4/small")
    hub.revisions.add("v1.0")
    assert call("pull", "me/many/int4/small@v1.0", "--name", "tiny").code == 0
    assert names() == ["tiny"]
    assert hub.asked[0] == "GET /api/models/me/many/revision/v1.0"
    [tiny] = [m for m in call("list", "--json").json()["models"] if m["name"] == "tiny"]
    assert tiny["source"]["subfolder"] == "int4/small"


def test_a_cut_connection_goes_on_where_it_broke(hub: Hub) -> None:
    hub.cuts = [3 << 20, 2 << 20]
    assert call("pull", "me/Tale").code == 0
    again = [line for line in hub.asked if "bytes=" in line]
    assert [int(line.rpartition("=")[2].rstrip("-")) % (1 << 20) for line in again] == [0] * len(again)
    assert len(again) == 2
    assert (models_folder() / "Tale" / LARGEST).read_bytes() == FILES[LARGEST]


def test_a_hub_without_ranges_sends_everything_again(hub: Hub) -> None:
    hub.cuts, hub.ranges = [3 << 20], False
    assert call("pull", "me/Tale").code == 0
    assert (models_folder() / "Tale" / LARGEST).read_bytes() == FILES[LARGEST]


def command(hub: Hub, *words: str) -> subprocess.Popen[str]:
    """In a process of its own, as users have it."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(models_folder().parent / "hf")}
    return subprocess.Popen(
        [sys.executable, "-m", "paceline", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_a_new_process_goes_on_where_an_old_one_ended(hub: Hub, how: str) -> None:
    hub.stall_after = 5 << 20
    first = command(hub, "pull", "me/Tale")
    until = time.monotonic() + 60
    part = models_folder() / ".unfinished" / "Tale" / "parts" / hashlib.sha256(FILES[LARGEST]).hexdigest()
    while not part.exists() or part.stat().st_size < (4 << 20):
        assert time.monotonic() < until
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL if how == "kill" else signal.SIGINT)
    hub.stalled.set()
    out, err = first.communicate(timeout=60)
    assert out == ""
    if how == "interrupt":
        assert first.returncode == 130
        assert err == "paceline: stopped; what came is kept, and pulling me/Tale again goes on from there\n"
    assert names() == []
    kept = part.stat().st_size
    shown = call("list")
    assert "Tale is not complete" in shown.err
    assert "Tale" not in shown.out
    hub.stall_after = None
    hub.asked.clear()
    second = command(hub, "pull", "me/Tale")
    out, err = second.communicate(timeout=120)
    assert (second.returncode, err) == (0, "")
    [resumed] = [line for line in hub.asked if "bytes=" in line]
    assert int(resumed.rpartition("=")[2].rstrip("-")) == kept >= (4 << 20)
    assert names() == ["Tale"]
    assert unfinished() == {}


def test_what_came_damaged_before_is_fetched_again(hub: Hub) -> None:
    place = models_folder() / ".unfinished" / "Tale" / "parts"
    place.mkdir(parents=True)
    (place / hashlib.sha256(FILES[LARGEST]).hexdigest()).write_bytes(b"wrong" * 99)
    assert call("pull", "me/Tale").code == 0
    asked = [line for line in hub.asked if line.partition(" bytes")[0].endswith(LARGEST)]
    assert [line.partition(" bytes=")[2] for line in asked] == ["495-", ""]


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.token = "hf_secret"
    with serving(Hub(files=hub.files)) as other:
        hub.through = other.url.replace("127.0.0.1", "localhost")
        assert call("pull", "me/Tale").code == 0
        assert {token for _, token in hub.tokens} == {"Bearer hf_secret"}
        assert [token for _, token in other.tokens] == [None] * len(other.tokens)
        assert other.tokens != []


def test_pulling_again_renews_what_changed_and_links_the_rest(hub: Hub) -> None:
    assert call("pull", "me/Tale").code == 0
    hub.asked.clear()
    again = call("pull", "me/Tale")
    assert again.code == 0
    assert "Tale is up to date" in again.err
    assert hub.fetched() == []
    hub.commit = hashlib.sha1(b"second").hexdigest()
    hub.add("me/Tale", changed(generation_json=b'{"eos_ids":[0]}'))
    assert call("pull", "me/Tale").code == 0
    assert sorted(hub.fetched()) == ["generation.json", "manifest.json"]
    assert (models_folder() / "Tale" / "generation.json").read_bytes() == b'{"eos_ids":[0]}'


def test_a_name_is_one_sources_without_force(hub: Hub) -> None:
    hub.add("you/Tale", changed(generation_json=b"{}"))
    assert call("pull", "me/Tale").code == 0
    clash = call("pull", "you/Tale")
    assert clash.code == 1
    assert "there is a model Tale already, from me/Tale" in clash.err
    assert "--name" in clash.err
    assert call("pull", "you/Tale", "--force").code == 0
    assert (models_folder() / "Tale" / "generation.json").read_bytes() == b"{}"


def test_the_old_one_stays_where_the_new_one_fails(hub: Hub) -> None:
    assert call("pull", "me/Tale").code == 0
    hub.commit = hashlib.sha1(b"second").hexdigest()
    hub.add("me/Tale", changed(tokenizer_json=b"{}"))
    hub.swapped["tokenizer.json"] = b"[]"
    failed = call("pull", "me/Tale")
    assert failed.code == 1
    assert "tokenizer.json did not arrive as it should" in failed.err
    assert call("run", "-b", "Tale", "-n", "3", "Hello").code == 0


@needs_terminal
def test_a_terminal_gets_a_bar(hub: Hub) -> None:
    with Terminal("pull", "me/Tale", columns=100, HF_ENDPOINT=hub.url) as terminal:
        shown = terminal.rest()
    assert "Tale" in shown
    assert "15.7/15.7 MB" in shown
    assert "MB/s" in shown


def test_two_pulls_of_a_name_do_not_meet(hub: Hub) -> None:
    hub.stall_after = 1 << 20
    first = command(hub, "pull", "me/Tale")
    until = time.monotonic() + 60
    while not unfinished():
        assert time.monotonic() < until
        time.sleep(0.02)
    second = call("pull", "me/Tale")
    hub.stall_after = None
    hub.stalled.set()
    assert "Tale is being pulled already" in second.err
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert names() == ["Tale"]


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
