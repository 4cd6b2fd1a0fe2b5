"""The flags that commands share, and how they become a session."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from paceline.flags import typers
from paceline.runtime.options import Options, flags_of
from paceline.store import chosen_bundle, offered_bundles
from paceline.terminal import remark
from paceline.unused import unused

if TYPE_CHECKING:
    from paceline.memory.plan import Plan
    from paceline.runtime.manifest import Part
    from paceline.runtime.session import Session

LOADED = flags_of(Options)
BundleFlag = Annotated[Path | None, typers("bundle", LOADED["bundle"])]
STATS_FULL = "--stats-full"
"""What `--stats full` is read as: a flag that may have a word behind it would swallow the prompt."""
BundleArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="BUNDLE",
        show_default="the embedded storyteller",
        autocompletion=offered_bundles,
        help="The same as -b BUNDLE.",
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, nothing else.")]


@dataclass(frozen=True, slots=True)
class Loading(Options):
    """What is loaded and where it runs."""

    elsewhere: ClassVar = ("drafter", "suffix_store")
    """Choices that are flags of `Drafting`: not every command lets them be made."""

    def of(self, folder: Path | None) -> Loading:
        """The same with the bundle that was named without -b. Raises BadParameter where both were given."""
        if folder is not None and self.bundle is not None:
            raise typer.BadParameter(
                "a bundle was named twice: give BUNDLE or -b BUNDLE", param_hint="--bundle"
            )
        return self if folder is None else dataclasses.replace(self, bundle=folder)

    def open(self, drafter: str, suffix_store: Path | None = None) -> Session:
        """Load the session, and say where it got less than was asked for.

        Raises BundleError, ValueError or DeviceError.
        """
        session = self.load(drafter, suffix_store)
        learns = bool(session.learner.learned())
        self.say_unused([drafter], session.bundle.manifest.drafters, suffix_store, learns)
        return session

    def load(self, drafter: str, suffix_store: Path | None = None) -> Session:
        """The same, where who drafts is not settled yet: nothing is said of choices that it has no use for."""
        from paceline.runtime.loading import open_session

        options = self.with_drafter(drafter, suffix_store)
        session = open_session(options, planned=Announcement().tell, measuring=say_measuring)
        self.say_if_lowered(session.bundle.manifest.target.context)
        return session

    def say_unused(
        self,
        drafters: Sequence[str],
        parts: Mapping[str, Part],
        suffix_store: Path | None = None,
        learns: bool = True,
    ) -> None:
        """Tell which choices these drafters have no use for; see `unused`."""
        for choice in unused(dataclasses.replace(self, suffix_store=suffix_store), drafters, parts, learns):
            remark(choice.flag)

    def say_if_lowered(self, most: int) -> None:
        """Tell a context that the model does not have."""
        if self.context is not None and self.context > most:
            remark(f"--context {self.context} is more than this model has: the context is {most} tokens")

    def with_drafter(self, drafter: str, suffix_store: Path | None) -> Loading:
        """All choices of one load; a budget is the whole process's."""
        return dataclasses.replace(
            self,
            bundle=chosen_bundle(self.bundle),
            drafter_bundle=None if self.drafter_bundle is None else chosen_bundle(self.drafter_bundle),
            drafter=drafter,
            suffix_store=suffix_store,
            memory_scope="process",
        )


def say_measuring(device: str) -> None:
    """Tell on stderr why it takes a while, the first time."""
    remark(f"--device auto: measuring on {device}, once, what passes of this bundle cost there")


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

    drafter: Annotated[str, LOADED["drafter"]] = "auto"
    suffix_store: Annotated[Path | None, LOADED["suffix_store"]] = None
