"""A choice of one load is written once: arguments of Python, their checks and the flags come from the same field."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import Annotated

import pytest
import typer
from command_line import BUNDLE, call
from typer.testing import CliRunner

import paceline
from paceline.flags import with_flags
from paceline.options import Drafting, Loading
from paceline.runtime.loading import load
from paceline.runtime.options import Flag, Options, flags_of
from paceline.runtime.placement import settle


def test_load_has_exactly_the_arguments_of_the_options() -> None:
    names = [field.name for field in fields(Options)]
    for opened in (paceline.load, load):
        parameters = inspect.signature(opened).parameters
        assert list(parameters) == names
        assert {n: p.default for n, p in parameters.items()} == {f.name: f.default for f in fields(Options)}
        assert [p.kind.name for p in parameters.values()].count("KEYWORD_ONLY") == len(names) - 1
    with pytest.raises(TypeError, match="contxt"):
        paceline.load(contxt=5)  # type: ignore[call-arg]


def test_every_choice_with_a_flag_is_one_of_the_command_line_and_says_the_same() -> None:
    shown = " ".join(call("run", "--help").out.split())
    for name, flag in flags_of(Options).items():
        assert f"--{name.replace('_', '-')}" in shown
        assert flag.help.split()[0] in shown
    assert {f.name for f in fields(Loading)} == {f.name for f in fields(Options)}
    assert set(Loading.elsewhere) == {f.name for f in fields(Drafting)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wider(Options):
    """Somebody added a choice."""

    warmth: Annotated[int | None, Flag(metavar="N", least=1, most=9, unset="cold", help="How warm.")] = None


def test_a_new_choice_is_a_flag_and_is_checked_without_another_edit() -> None:
    app, got = typer.Typer(), []

    @app.command()
    @with_flags
    def show(*, wider: Wider) -> None:
        got.append(wider)

    assert CliRunner().invoke(app, ["--warmth", "7", "-c", "64"]).exit_code == 0
    assert got == [Wider(warmth=7, context=64)]
    assert CliRunner().invoke(app, ["--warmth", "10"]).exit_code == 2
    for wrong, message in (
        (10, "from 1 to 9"),
        (0, "from 1 to 9"),
        (True, "whole number"),
        ("x", "whole number"),
    ):
        with pytest.raises(paceline.ArgumentError, match=f"warmth must be .*{message}"):
            settle(Wider(str(BUNDLE), warmth=wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"max_nodes": 10**6}, "from 1 to 1024"),
        ({"draft_depth": 0}, "draft_depth"),
        ({"context": 1}, "2 or more"),
    ],
)
def test_ranges_hold_in_python_as_on_the_command_line(choice: dict[str, int], message: str) -> None:
    with pytest.raises(paceline.ArgumentError, match=message):
        paceline.load(BUNDLE, **choice)  # type: ignore[arg-type]
