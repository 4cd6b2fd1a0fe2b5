"""The store of pulled models: names, what is listed, what is removed, and what is left alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import BUNDLE, call
from terminal import Terminal, needs_terminal

import paceline
from paceline.store import Source, chosen_bundle, models_folder, names, near, write_source

SOURCE = Source("me/Tale", "", "0" * 40, None, "2026-11-29T02:00:00+00:00")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PACELINE_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def put(store: Path, name: str) -> Path:
    place = Path(shutil.copytree(BUNDLE, store / name, copy_function=os.link))
    write_source(place, SOURCE)
    return place


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PACELINE_MODELS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "paceline" / "models"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_folder() == tmp_path / ".local" / "share" / "paceline" / "models"
    monkeypatch.setenv("PACELINE_MODELS", "~/here")
    assert models_folder() == tmp_path / "here"


def test_an_empty_store_lists_the_model_of_the_package(store: Path) -> None:
    shown = call("list")
    assert (shown.code, shown.err) == (0, "")
    head, row = shown.out.splitlines()
    assert head.split() == ["NAME", "SIZE", "FORMAT", "CONTEXT", "PULLED", "SOURCE"]
    assert row.split()[0] == "storyteller"
    assert not store.exists()
    assert call("run", "-b", "storyteller", "-n", "3", "--raw", "Once").code == 0


def test_the_list_tells_where_models_came_from(store: Path) -> None:
    put(store, "tale")
    row = call("list").out.splitlines()[2]
    assert row.split() == ["tale", "15.7", "MB", "none,", "16.2", "bits", "512", "2026-11-29", "me/Tale"]
    shown = call("list", "--json").json()
    assert [model["name"] for model in shown["models"]] == ["storyteller", "tale"]
    assert shown["models"][1]["bytes"] == sum(
        p.stat().st_size for p in (store / "tale").rglob("*") if p.is_file()
    )
    assert shown["models"][1]["source"]["commit"] == "0" * 40


def test_a_damaged_one_is_told_and_hides_no_other(store: Path) -> None:
    place = put(store, "tale")
    put(store, "whole")
    (place / "manifest.json").unlink()
    (place / "manifest.json").write_text("{}")
    shown = call("list")
    assert shown.code == 0
    assert "damaged" in shown.out
    assert "whole" in shown.out
    assert "tale cannot be used" in shown.err
    assert "fault" in call("list", "--json").json()["models"][1]
    assert call("rm", "tale", "-y").code == 0
    assert names() == ["whole"]


def test_a_folder_wins_over_the_store(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = put(store, "tale")
    monkeypatch.chdir(tmp_path)
    assert chosen_bundle("tale") == stored
    shutil.copytree(BUNDLE, tmp_path / "tale", copy_function=os.link)
    assert chosen_bundle("tale") == "tale"
    assert call("inspect", "tale", "--json").json()["folder"] == "tale"


def test_a_name_that_is_mistyped_suggests_near_ones(store: Path) -> None:
    put(store, "SmolLM2-135M-Instruct")
    assert near("smollm2") == ["SmolLM2-135M-Instruct"]
    for words in (["run", "-b", "SmolLM2-135-Instruct", "Hello"], ["inspect", "smollm2-135m-instruct"]):
        done = call(*words)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert "did you mean SmolLM2-135M-Instruct?" in done.err
        assert "paceline pull" in done.err
    done = call("run", "-b", "entirely-other", "Hello")
    assert "no bundle at entirely-other" in done.err
    assert "paceline pull OWNER/REPO" in done.err
    with pytest.raises(paceline.BundleError, match="did you mean storyteller"):
        paceline.load("storyteler")


def test_paths_are_never_names(store: Path) -> None:
    put(store, "tale")
    for path in ("./x/../tale", "../models/tale", str(store / "none"), ".unfinished", "tale/"):
        assert chosen_bundle(path) == path


def test_removing_frees_what_it_had_and_asks_first(store: Path) -> None:
    put(store, "tale")
    put(store, "keep")
    refused = call("rm", "tale")
    assert refused.code == 2
    assert "add --yes" in refused.err
    assert call("rm", "tale", "--yes").out == "removed tale, 15.7 MB freed\n"
    assert os.listdir(store) == ["keep"]
    assert BUNDLE.is_dir()


@needs_terminal
@pytest.mark.parametrize(
    ("typed", "left"), [("y\n", []), ("n\n", ["tale"]), ("\n", ["tale"]), ("\x03", ["tale"])]
)
def test_a_terminal_is_asked(store: Path, typed: str, left: list[str]) -> None:
    put(store, "tale")
    with Terminal("rm", "tale") as terminal:
        terminal.until("Remove tale? [y/N]")
        terminal.type(typed)
        terminal.rest(typed if typed == "\x03" else "")
        assert terminal.process.wait() == {"y\n": 0, "\x03": 130}.get(typed, 1)
    assert names() == left


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../outside", "cannot be a model's name"),
        (".unfinished", "cannot be a model's name"),
        ("/etc", "cannot be a model's name"),
        ("", "cannot be a model's name"),
        ("storyteller", "ships inside the package"),
        ("tal", "did you mean tale?"),
        ("other", "'paceline list' shows which there are"),
    ],
)
def test_nothing_outside_the_store_is_removed(store: Path, tmp_path: Path, name: str, words: str) -> None:
    put(store, "tale")
    (tmp_path / "outside").mkdir()
    done = call("rm", "tale", name, "--yes")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert words in done.err
    assert names() == ["tale"]  # all or none
    assert (tmp_path / "outside").is_dir()


def test_a_link_in_the_store_goes_and_what_it_leads_to_stays(store: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(BUNDLE, tmp_path / "mine", copy_function=os.link))
    store.mkdir()
    (store / "linked").symlink_to(mine)
    (mine / "target" / "out").symlink_to(tmp_path / "nowhere")
    (mine / "target" / "out").unlink()
    assert call("run", "-b", "linked", "-n", "3", "Hello").code == 0
    assert call("rm", "linked", "--yes").code == 0
    assert names() == []
    assert (mine / "manifest.json").is_file()


def test_what_a_source_says_is_not_trusted(store: Path) -> None:
    place = put(store, "tale")
    for text in ("{", json.dumps({"repository": 5}), "x" * (1 << 17)):
        (place / ".source.json").unlink()
        (place / ".source.json").write_text(text)
        assert call("list").out.splitlines()[2].split()[-1] == "unknown"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("paceline rm ta", ["tale"]),
        ("paceline rm ", ["other", "tale"]),
        ("paceline run -b ", ["storyteller", "other", "tale", "table/", "x/"]),
        ("paceline inspect ta", ["tale", "table/"]),
        ("paceline chat --bundle x/i", ["x/inner/"]),
    ],
)
def test_tab_offers_names_and_folders(store: Path, tmp_path: Path, line: str, offered: list[str]) -> None:
    put(store, "tale")
    put(store, "other")
    for folder in ("table", "x/inner", "x/.hidden"):
        (tmp_path / "work" / folder).mkdir(parents=True)
    asked = {"_PACELINE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "paceline.main"],
        env={**os.environ, **asked},
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == offered
