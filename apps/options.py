"""The flags that commands share, and how they become a session and a way to choose tokens."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from paceline.terminal import remark

if TYPE_CHECKING:
    from paceline.memory.plan import Plan
    from paceline.runtime.manifest import Generation
    from paceline.runtime.request import Sampling
    from paceline.runtime.session import Session

MODEL, ASKING, DRAFTING, CHOOSING = "Model", "Asking", "Drafting", "Choosing tokens"

BundleFlag = Annotated[
    Path | None,
    typer.Option(
        "-b",
        "--bundle",
        metavar="DIR",
        show_default="the embedded storyteller",
        rich_help_panel=MODEL,
        help="Folder made by 'paceline export'.",
    ),
]
STATS_FULL = "--stats-full"
"""What `--stats full` is read as: a flag that may have a word behind it would swallow the prompt."""
BundleArgument = Annotated[
    Path | None,
    typer.Argument(metavar="DIR", show_default="the embedded storyteller", help="The same as -b DIR."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, nothing else.")]


@dataclass(frozen=True, slots=True)
class Loading:
    """What is loaded and where it runs."""

    bundle: BundleFlag = None
    context: Annotated[
        int | None,
        typer.Option(
            "-c",
            "--context",
            metavar="N",
            min=2,
            show_default="the model's own",
            rich_help_panel=MODEL,
            help="Tokens that prompt and answer may have together, 2 or more.",
        ),
    ] = None
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            show_default="as much as it takes",
            rich_help_panel=MODEL,
            help="Keep the whole process below this, such as 900MB; see 'paceline plan'.",
        ),
    ] = None
    cache: Annotated[
        Literal["fp32", "fp16", "int8"] | None,
        typer.Option(
            "--cache",
            show_default="fp16, if the bundle has it",
            rich_help_panel=MODEL,
            help="Keep the context in 32, 16 or 8 bits a number. int8 is the smallest; it changes some answers.",
        ),
    ] = None
    overflow: Annotated[
        Literal["stop", "slide"] | None,
        typer.Option(
            "--overflow",
            show_default="stop; slide in a chat",
            rich_help_panel=MODEL,
            help="When the context is full: stop, or slide on without the oldest part (in a chat: whole turns).",
        ),
    ] = None
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", rich_help_panel=MODEL, help="See 'paceline devices'.")
    ] = "cpu"
    device_draft: Annotated[
        str | None,
        typer.Option(
            "--device-draft",
            metavar="NAME",
            show_default="as --device",
            rich_help_panel=MODEL,
            help="Device of the draft model.",
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            "-t",
            "--threads",
            metavar="N",
            min=1,
            max=256,
            show_default="one a core, within a quota",
            rich_help_panel=MODEL,
            help="Threads of the model.",
        ),
    ] = None
    draft_depth: Annotated[
        int | None,
        typer.Option(
            "--draft-depth",
            metavar="N",
            min=1,
            max=1024,
            show_default="by drafter",
            rich_help_panel=DRAFTING,
            help="Draft at most N tokens ahead.",
        ),
    ] = None
    max_nodes: Annotated[
        int | None,
        typer.Option(
            "--max-nodes",
            metavar="N",
            min=1,
            max=1024,
            show_default="16",
            rich_help_panel=DRAFTING,
            help="Draft at most N tokens a round, over all branches.",
        ),
    ] = None

    def of(self, folder: Path | None) -> Loading:
        """The same with the bundle that was named without -b. Raises BadParameter where both were given."""
        if folder is not None and self.bundle is not None:
            raise typer.BadParameter("a bundle was named twice: give DIR or -b DIR", param_hint="--bundle")
        return self if folder is None else dataclasses.replace(self, bundle=folder)

    def open(self, drafter: str, suffix_store: Path | None = None) -> Session:
        """Load the session, and say where it got less than was asked for.

        Raises BundleError, ValueError or DeviceError.
        """
        from paceline.embedded import embedded_bundle
        from paceline.memory.budget import budget_of
        from paceline.runtime.loading import load

        if suffix_store is not None and not suffix_store.absolute().parent.is_dir():
            raise ValueError(
                f"--suffix-store {suffix_store}: there is no folder {suffix_store.absolute().parent}"
            )
        session = load(
            self.bundle or embedded_bundle(),
            drafter=drafter,
            **self.settled(suffix_store),
            budget=None if self.memory is None else budget_of(self.memory, "process"),
            planned=Announcement().tell,
        )
        self.say_if_lowered(session.bundle.manifest.target.context)
        return session

    def say_if_lowered(self, most: int) -> None:
        """Tell a context that the model does not have."""
        if self.context is not None and self.context > most:
            remark(f"--context {self.context} is more than this model has: the context is {most} tokens")

    def settled(self, suffix_store: Path | None) -> dict[str, Any]:
        """All but the bundle, the drafter and the budget, as `load` takes them."""
        return {
            "context": self.context,
            "threads": self.threads,
            "max_nodes": self.max_nodes,
            "draft_depth": self.draft_depth,
            "device": self.device,
            "device_draft": self.device_draft,
            "suffix_store": suffix_store,
            "cache": self.cache,
            "overflow": self.overflow or "stop",
        }


class Announcement:
    """Says on stderr with what plan a session is loaded, and why, where it is planned twice."""

    def __init__(self) -> None:
        self._said = False

    def tell(self, plan: Plan) -> None:
        """The plan that will be kept from here on."""
        from paceline.plan_text import plan_line

        now = "measured on this device, the plan is now: " if self._said else "plan: "
        self._said = True
        remark(f"{now}{plan_line(plan)}")


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


def _value(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise typer.BadParameter(f"{text!r:.60} is not NAME=VALUE", param_hint="--template-value")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


@dataclass(frozen=True, slots=True)
class Drafting:
    """Who drafts."""

    drafter: Annotated[
        str,
        typer.Option(
            "--drafter",
            metavar="NAMES",
            rich_help_panel=DRAFTING,
            help="auto: what is fastest at the moment; none: plain decoding; chain, tree: the bundle's small model; "
            "lookup, suffix, recycle: without a model. Several joined by commas are fused. Changes the speed, "
            "never the answer.",
        ),
    ] = "auto"
    suffix_store: Annotated[
        Path | None,
        typer.Option(
            "--suffix-store",
            metavar="FILE",
            rich_help_panel=DRAFTING,
            help="Keep what the suffix drafter learnt in FILE and use it again next time.",
        ),
    ] = None


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
        str,
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
