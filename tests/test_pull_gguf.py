"""`paceline pull` of GGUF files: which one, what it becomes, and what is kept without the exporter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import call
from hub_server import Hub, hub_for

from paceline.store import models_folder, names, unfinished, unfinished_folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_for(tmp_path, monkeypatch) as hub:
        yield hub


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A GGUF model."""
    pytest.importorskip("torch")
    pytest.importorskip("gguf")
    from gguf_files import make_model, write_model

    return Path(write_model(tmp_path_factory.mktemp("gguf") / "m.gguf", make_model("llama"))).read_bytes()


@pytest.mark.export
def test_the_gguf_file_that_is_named_becomes_a_bundle(hub: Hub, raw: bytes) -> None:
    others = {"README.md": b"x", "tiny.F16.gguf": b"GGUF, another", "mmproj-tiny.gguf": b"x"}
    hub.add("me/Tiny-GGUF", {"tiny.Q8_0.gguf": raw, **others})
    words = ["pull", "me/Tiny-GGUF", "--name", "tiny", "--file"]
    made = call(*words, "tiny.Q8_0.gguf", "--json").json()
    assert (made["name"], made["architecture"], made["title"]) == ("tiny", "llama", "Tiny Model")
    assert made["source"]["file"] == "tiny.Q8_0.gguf"
    assert hub.fetched() == ["tiny.Q8_0.gguf"]
    assert call("run", "--raw", "-b", "tiny", "-n", "4", "Hello").code == 0
    assert names() == ["tiny"]
    assert unfinished() == {}
    hub.asked.clear()
    assert "tiny is up to date" in call(*words, "tiny.Q8_0.gguf").err
    assert hub.fetched() == []
    assert (
        "there is a model tiny already, from me/Tiny-GGUF (tiny.Q8_0.gguf)"
        in call(*words, "tiny.F16.gguf").err
    )


@pytest.mark.export
def test_what_the_exporter_refuses_is_one_line_and_is_not_listed(hub: Hub) -> None:
    hub.add("me/bad", {"bad.gguf": b"GGUF" + b"\xff" * 99})
    done = call("pull", "me/bad")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert names() == []
    assert call("rm", "bad", "--yes").code == 0
    assert unfinished() == {}


def test_several_are_listed_and_one_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {f"big-{n:05}-of-00003.gguf": b"x" * n for n in (1, 2, 3)}
    hub.add("me/more", {"small.gguf": b"GGUFsmall", **{f"q8/{name}": data for name, data in parts.items()}})
    done = call("pull", "me/more")
    assert (
        "has 2 GGUF models (small.gguf 9 B, q8/big-00001-of-00003.gguf 1 B): name one with --file" in done.err
    )
    wrong = call("pull", "me/more", "--file", "large.gguf")
    assert "me/more has no GGUF file large.gguf (small.gguf 9 B, q8/big-00001-of-00003.gguf 1 B)" in wrong.err
    monkeypatch.setattr("paceline.pull._EXPORTER", ("no_such_module",))
    done = call("pull", "me/more", "--file", "q8/big-00002-of-00003.gguf")
    assert done.code == 1
    kept = unfinished_folder("more") / "gguf"
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == parts
    assert f"{kept / 'big-00001-of-00003.gguf'} was fetched and is kept" in done.err
    assert "pip install 'paceline[gguf]'" in done.err


@pytest.mark.export
def test_what_is_kept_is_not_fetched_again(hub: Hub, raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("me/Tiny-GGUF", {"tiny.gguf": raw})
    monkeypatch.setattr("paceline.pull._EXPORTER", ("no_such_module",))
    done = call("pull", "me/Tiny-GGUF")
    assert done.code == 1
    first, second = done.err.splitlines()
    assert "tiny.gguf is no bundle yet: it is fetched, and kept until 'paceline[gguf]' is installed" in first
    assert "making a bundle of it needs no_such_module" in second
    assert names() == []
    assert "Tiny-GGUF is not complete" in call("list").err
    hub.asked.clear()
    monkeypatch.setattr("paceline.pull._EXPORTER", ())
    assert call("pull", "me/Tiny-GGUF").code == 0
    assert hub.fetched() == []
    assert names() == ["Tiny-GGUF"]


def test_a_part_that_is_missing_is_named(hub: Hub) -> None:
    hub.add("me/more", {"big-00001-of-00002.gguf": b"x"})
    assert "big-00002-of-00002.gguf is missing" in call("pull", "me/more").err


@pytest.mark.parametrize("name", ["..gguf", ".gguf", "a\\b.gguf", "a:b.gguf", "x/../../y.gguf"])
def test_a_file_with_a_hostile_name_stays_inside(hub: Hub, name: str, tmp_path: Path) -> None:
    hub.add("me/bad", {name: b"GGUF"})
    done = call("pull", "me/bad")
    assert done.code == 1
    call("rm", "bad", "--yes")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert {path.name for path in tmp_path.iterdir()} <= {"models"}


def test_a_bundle_wins_over_gguf_files(hub: Hub) -> None:
    hub.add("me/Tale", {"tale.gguf": b"GGUF"})
    assert call("pull", "me/Tale").code == 0
    about = json.loads((models_folder() / "Tale" / ".source.json").read_bytes())
    assert about["file"] is None
