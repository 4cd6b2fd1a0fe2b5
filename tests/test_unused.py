"""Choices that nobody has a use for are told, each by its name, and nothing else is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from command_line import call, copied_bundle

from paceline import load

SAID = [
    (
        {"drafter": "lookup", "mirror": "on", "threads": 2},
        "mirror",
        "takes a thread and is not used: lookup runs",
    ),
    (
        {"drafter": "none", "mirror": "on", "threads": 2},
        "mirror",
        "takes a thread and is not used: none runs",
    ),
    ({"device_heads": "cpu"}, "device_heads", "is not used: this bundle has no draft head"),
    ({"tree": "static"}, "tree", "is not used: this bundle has no draft head that could branch"),
    ({"drafter": "none", "draft_depth": 4}, "draft_depth", "is not used: none drafts nothing"),
    ({"drafter": "none", "max_nodes": 4}, "max_nodes", "is not used: none drafts nothing"),
]
"""Of the storyteller, which has a draft model and no head."""
USED: list[dict[str, Any]] = [
    {"drafter": "chain", "mirror": "on", "threads": 2},
    {"device_draft": "cpu"},
    {"drafter": "lookup", "draft_depth": 4, "max_nodes": 4},
    {"drafter": "none", "mirror": "auto", "threads": 2},
]


def flags(choices: dict[str, Any]) -> list[str]:
    return [word for name, value in choices.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def told(*command: str | Path) -> str:
    """What a command that works says on the standard error, in one line."""
    done = call(*command)
    assert done.code == 0
    return " ".join(done.err.split())


@pytest.mark.parametrize(("choices", "name", "words"), SAID)
def test_what_nobody_uses_is_told_once(choices: dict[str, Any], name: str, words: str) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        load(**choices).close()
    if name in ("draft_depth", "max_nodes"):  # in Python `set_drafter` may still give them to another drafter
        assert not warned
    else:
        assert [w.filename for w in warned] == [__file__]
        assert str(warned[0].message).startswith(f"{name} {words}")
    for command in (["run", "-n", "2", "Hi"], ["plan"]):
        said = told(*command, *flags(choices))
        assert said.count("not used") == 1
        assert f"--{name.replace('_', '-')}" in said.partition(words)[0]
        assert words in said


@pytest.mark.parametrize("choices", USED)
def test_what_somebody_uses_is_not(choices: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(**choices).close()
    assert "not used" not in told("run", "-n", "2", "Hi", *flags(choices))


def test_models_of_another_bundle_that_nobody_runs_are_told(tmp_path: Path) -> None:
    guest = copied_bundle(tmp_path)
    asked = ("run", "-n", "2", "Hi", "--drafter-bundle", guest)
    assert "--drafter-bundle is not used: lookup runs no model of it" in told(*asked, "--drafter", "lookup")
    assert "not used" not in told(*asked, "--drafter", "chain")
    assert "not used" not in told(*asked)


def test_a_bench_tells_it_once_of_all_its_drafters() -> None:
    asked = (
        "bench",
        "--limit",
        "1",
        "--max-tokens",
        "4",
        "--repeats",
        "2",
        "--mirror",
        "on",
        "--threads",
        "2",
    )
    said = told(*asked, "--drafters", "lookup,suffix")
    assert said.count("not used") == 1
    assert "takes a thread and is not used: lookup, suffix runs nothing" in said
    assert "not used" not in told(*asked, "--drafters", "lookup,chain")
