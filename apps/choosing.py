"""The flags of how tokens are chosen, and when an answer ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.runtime.request import LEGAL, Accept

if TYPE_CHECKING:
    from paceline.runtime.bundle.generation import Generation
    from paceline.runtime.request import Sampling

CHOOSING = "Choosing tokens"


_FIELDS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
"""Fields of `Sampling` by the names of their flags."""


def _chooser(name: str, help_text: str, metavar: str = "X") -> typer.models.OptionInfo:
    made: typer.models.OptionInfo = typer.Option(
        _flag(name),
        metavar=metavar,
        show_default="the bundle's",
        rich_help_panel=CHOOSING,
        help=f"{help_text}: {LEGAL[_FIELDS[name]].words}.",
    )
    return made


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, slots=True)
class Ending:
    """When an answer ends, besides where the model ends it."""

    max_tokens: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--max-tokens",
            metavar="N",
            min=1,
            show_default="until the model stops",
            rich_help_panel=CHOOSING,
            help="Length of the answer at most.",
        ),
    ] = None
    stop: Annotated[
        list[str],
        typer.Option(
            "--stop",
            metavar="TEXT",
            rich_help_panel=CHOOSING,
            help="End the answer before this text; repeatable.",
        ),
    ] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Choosing:
    """How tokens are chosen; what is not given comes from the bundle, else greedy."""

    temp: Annotated[float | None, _chooser("temp", "Temperature")] = None
    top_k: Annotated[int | None, _chooser("top_k", "Keep the k likeliest", metavar="N")] = None
    top_p: Annotated[float | None, _chooser("top_p", "Keep the likeliest tokens of mass p")] = None
    min_p: Annotated[
        float | None, _chooser("min_p", "Drop tokens less likely than this share of the best")
    ] = None
    repeat_penalty: Annotated[
        float | None, _chooser("repeat_penalty", "Divide the logits of tokens seen")
    ] = None
    frequency_penalty: Annotated[
        float | None, _chooser("frequency_penalty", "Off a token's logit for each use in the answer")
    ] = None
    presence_penalty: Annotated[
        float | None, _chooser("presence_penalty", "Off the logit of tokens used in the answer")
    ] = None
    logit_bias: Annotated[
        list[str],
        typer.Option(
            "--logit-bias",
            metavar="ID=VALUE",
            rich_help_panel=CHOOSING,
            help="Add VALUE to a token; repeatable.",
        ),
    ] = field(default_factory=list)
    ban: Annotated[
        list[int],
        typer.Option(
            "--ban", metavar="ID", min=0, rich_help_panel=CHOOSING, help="Never choose a token; repeatable."
        ),
    ] = field(default_factory=list)
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            show_default="drawn",
            rich_help_panel=CHOOSING,
            help="The same seed gives the same answer.",
        ),
    ] = None
    accept: Annotated[
        Accept,
        typer.Option(
            "--accept",
            metavar="RULE",
            rich_help_panel=CHOOSING,
            help="How drafts are judged above temperature 0. coupled: the same answer whatever drafts; rejection, "
            "block: the same distribution; typical: neither, but faster.",
        ),
    ] = "coupled"

    def sampling(self, defaults: Generation) -> Sampling:
        """The bundle's defaults with the given flags on top. Raises BadParameter for a value that is not legal."""
        from paceline.runtime.bundle.generation import sampling_of

        own = sampling_of(defaults)
        return dataclasses.replace(
            own,
            **dict(self._given()),
            logit_bias=dict(_bias(text) for text in self.logit_bias),
            banned=own.banned | frozenset(self.ban),
        )

    def _given(self) -> Iterator[tuple[str, Any]]:
        for name, field_name in _FIELDS.items():
            if (value := getattr(self, name)) is None:
                continue
            if not (legal := LEGAL[field_name]).good(value):
                raise typer.BadParameter(f"it must be {legal.words}, not {value:g}", param_hint=_flag(name))
            yield field_name, value


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        pair = int(token), float(value)
    except ValueError:
        pair = -1, math.nan
    if pair[0] < 0 or not math.isfinite(pair[1]):
        raise typer.BadParameter(f"{text!r} is not ID=VALUE, such as 42=-1.5", param_hint="--logit-bias")
    return pair
