"""The flags of how tokens are chosen, and when an answer ends."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.runtime.request import Accept

if TYPE_CHECKING:
    from paceline.runtime.manifest import Generation
    from paceline.runtime.request import Sampling

CHOOSING = "Choosing tokens"


def _chooser(
    name: str, help_text: str, least: float | None = None, most: float | None = None, metavar: str = "X"
) -> typer.models.OptionInfo:
    made: typer.models.OptionInfo = typer.Option(
        name,
        metavar=metavar,
        show_default="the bundle's",
        rich_help_panel=CHOOSING,
        help=help_text,
        min=least,
        max=most,
    )
    return made


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

    temp: Annotated[float | None, _chooser("--temp", "Temperature; 0 is greedy.", 0)] = None
    top_k: Annotated[int | None, _chooser("--top-k", "Keep the k likeliest; 0 is off.", 0, metavar="N")] = (
        None
    )
    top_p: Annotated[float | None, _chooser("--top-p", "Keep the likeliest tokens of mass p.", 0, 1)] = None
    min_p: Annotated[
        float | None,
        _chooser("--min-p", "Drop tokens less likely than this share of the best.", 0, 1),
    ] = None
    repeat_penalty: Annotated[
        float | None, _chooser("--repeat-penalty", "Divide the logits of tokens seen; 1 is off.", 0)
    ] = None
    frequency_penalty: Annotated[
        float | None,
        _chooser("--frequency-penalty", "Off a token's logit for each use in the answer; 0 is off."),
    ] = None
    presence_penalty: Annotated[
        float | None,
        _chooser("--presence-penalty", "Off the logit of tokens used in the answer; 0 is off."),
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
        """The bundle's defaults with the given flags on top."""
        from paceline.runtime.bundle.generation import sampling_of

        own = sampling_of(defaults)
        return dataclasses.replace(
            own,
            temperature=_given("--temp", self.temp, own.temperature),
            top_k=own.top_k if self.top_k is None else self.top_k,
            top_p=_given("--top-p", self.top_p, own.top_p),
            min_p=_given("--min-p", self.min_p, own.min_p),
            repetition_penalty=_given("--repeat-penalty", self.repeat_penalty, own.repetition_penalty),
            frequency_penalty=_given("--frequency-penalty", self.frequency_penalty, own.frequency_penalty),
            presence_penalty=_given("--presence-penalty", self.presence_penalty, own.presence_penalty),
            logit_bias=dict(_bias(text) for text in self.logit_bias),
            banned=own.banned | frozenset(self.ban),
        )


def _given(name: str, value: float | None, otherwise: float) -> float:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number", param_hint=name)
    return otherwise if value is None else value


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        pair = int(token), float(value)
    except ValueError:
        pair = -1, math.nan
    if pair[0] < 0 or not math.isfinite(pair[1]):
        raise typer.BadParameter(f"{text!r} is not ID=VALUE, such as 42=-1.5", param_hint="--logit-bias")
    return pair
