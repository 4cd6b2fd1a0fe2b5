"""The flags of what a chat template gets besides the question."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.stats_text import unread_words

if TYPE_CHECKING:
    from paceline.runtime.session import Session

ASKING = "Asking"


@dataclass(frozen=True, slots=True)
class Asking:
    """What the chat template gets besides the question."""

    system_prompt: Annotated[
        str | None,
        typer.Option(
            "-s",
            "--system-prompt",
            metavar="TEXT",
            rich_help_panel=ASKING,
            help="Instructions for the model.",
        ),
    ] = None
    think: Annotated[
        bool | None,
        typer.Option(
            "--think/--no-think",
            show_default="the template's",
            rich_help_panel=ASKING,
            help="Let a thinking model think first, or not.",
        ),
    ] = None
    tools_file: Annotated[
        Path | None,
        typer.Option(
            "--tools",
            metavar="FILE",
            rich_help_panel=ASKING,
            help="JSON list of tools, shown to the model as its chat template does.",
        ),
    ] = None

    template_value: Annotated[
        list[str],
        typer.Option(
            "--template-value",
            metavar="NAME=VALUE",
            rich_help_panel=ASKING,
            help="A variable of the chat template, such as reasoning_effort=low; JSON or text, repeatable.",
        ),
    ] = field(default_factory=list)

    @property
    def values(self) -> dict[str, Any]:
        """The variables of the template. Raises BadParameter for what is no NAME=VALUE."""
        return dict(_value(text) for text in self.template_value)

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The tools of the file. Raises ValueError for one that holds none."""
        from paceline.prompt import read_tools

        return None if self.tools_file is None else read_tools(self.tools_file)

    def given(self) -> list[str]:
        """Flags that only a chat template can follow."""
        named = {
            "--system-prompt": self.system_prompt,
            "--think": self.think,
            "--tools": self.tools_file,
            "--template-value": self.template_value or None,
        }
        return [flag for flag, value in named.items() if value is not None]


def unread(
    session: Session, tools: object, think: bool | None, values: Mapping[str, object] | None
) -> list[str]:
    """A line for each choice that the chat template of a session does not read."""
    given = {"tools": tools, "enable_thinking": think}
    names = [*(name for name, value in given.items() if value is not None), *(values or ())]
    return (
        [unread_words(name, session.bundle.manifest.name) for name in session.unread(names)] if names else []
    )


def no_template(session: Session) -> str:
    """Why a bundle cannot chat."""
    return session.template_fault or "this bundle has no chat template"


def _value(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise typer.BadParameter(f"{text!r:.60} is not NAME=VALUE", param_hint="--template-value")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value
