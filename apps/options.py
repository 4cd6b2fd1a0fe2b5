"""The flags that commands share, and how they become a session and a way to choose tokens."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from paceline.terminal import remark

if TYPE_CHECKING:
    from paceline.memory.plan import Plan
    from paceline.runtime.session import Session

MODEL, DRAFTING = "Model", "Drafting"

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
