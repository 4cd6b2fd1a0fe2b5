"""Flags of what is trained on a bundle's own answers: the answers, and the learning."""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from paceline.export.training.answers import Answers
    from paceline.runtime.bundle.bundle import Bundle

ANSWERS, LEARNING = "The answers", "Learning"
LossName = Literal["ce", "kl", "rkl", "jsd", "tvd", "tvd++", "lk"]


def number(flag: str, least: int, default: str | None, panel: str, words: str) -> typer.models.OptionInfo:
    """A flag that takes a whole number from `least` up."""
    made: typer.models.OptionInfo = typer.Option(
        flag, metavar="N", min=least, show_default=default or True, rich_help_panel=panel, help=words
    )
    return made


def share_of(flag: str, most: float | None, words: str) -> typer.models.OptionInfo:
    """A flag of the learning that takes a number from 0 to `most`."""
    made: typer.models.OptionInfo = typer.Option(
        flag, metavar="X", min=0, max=most, rich_help_panel=LEARNING, help=words
    )
    return made


@dataclass(frozen=True, slots=True)
class Asked:
    """What the target answers, to be learnt from."""

    prompts: Annotated[
        list[Path],
        typer.Option(
            "--prompts",
            metavar="FILE",
            show_default="the answers that are there, as they are",
            rich_help_panel=ANSWERS,
            help="JSONL with 'prompt', or 'turns' of which the first counts, or a prompt a line. Repeatable.",
        ),
    ] = field(default_factory=list)
    tokens: Annotated[
        int,
        typer.Option(
            "--tokens",
            metavar="N",
            min=1,
            rich_help_panel=ANSWERS,
            help="Let the target answer until its answers have so many.",
        ),
    ] = 200_000
    longest: Annotated[
        int,
        typer.Option(
            "--max-tokens", metavar="N", min=4, rich_help_panel=ANSWERS, help="Of one answer, at most."
        ),
    ] = 256
    answers: Annotated[
        Path | None,
        typer.Option(
            "--answers",
            metavar="DIR",
            show_default="OUT/answers",
            rich_help_panel=ANSWERS,
            help="Where answers are kept: all that is trained for a target can learn from the same ones.",
        ),
    ] = None

    def texts(self) -> list[str]:
        """All prompts, each once. Raises ValueError for a file that holds none."""
        from paceline.bench_prompts import read_tasks

        for path in self.prompts:
            if not path.is_file():
                raise ValueError(f"no file of prompts at {path}")
        return list(dict.fromkeys(task.turns[0] for path in self.prompts for task in read_tasks(path)))

    def found(self, folder: Path, bundle: Bundle, needs: Sequence[str] = ()) -> Answers:
        """Answers that were written before by the weights of this bundle, whatever taps it gives itself.

        needs: taps that they must hold. Raises ValueError where there are none such.
        """
        from paceline.export.heads.config import target_id
        from paceline.export.training.answers import INDEX, Answers

        if not (folder / INDEX).is_file():
            raise ValueError(
                f"there are no answers at {folder} yet: give --prompts FILE to have some written"
            )
        answers = Answers(folder)
        if answers.index.target.weights != target_id(bundle.manifest).weights:
            raise ValueError(
                f"{folder} holds answers of other weights than {bundle.folder} has: give --prompts FILE and another "
                "--answers folder to have some written"
            )
        if missing := [tap for tap in needs if tap not in answers.taps]:
            raise ValueError(
                f"{folder} holds answers without {', '.join(missing)}, which is learnt from: give --prompts FILE and "
                "another --answers folder to have some written"
            )
        return answers

    def made(
        self,
        folder: Path,
        bundle: Bundle,
        taps: Sequence[str] | None,
        texts: Sequence[str],
        threads: int,
        say: Callable[[str], None],
    ) -> Answers:
        """Let the target answer what is not answered yet.

        taps: those to keep. None: those of the answers that are there, else the last one where the target gives it.
        """
        from paceline.export.training.answers import FINAL, INDEX, Answers, Wish, write_answers

        if taps is not None:
            wish = Wish(taps=tuple(tap for tap in taps if tap != FINAL), longest=self.longest)
        elif (folder / INDEX).is_file():
            wish = msgspec.structs.replace(Answers(folder).index.wish, longest=self.longest)
        else:
            wish = Wish(taps=(), longest=self.longest, final=FINAL in bundle.manifest.target.taps)

        def report(done: int) -> None:
            say(f"the target answers {min(1.0, done / self.tokens):.0%}")

        return write_answers(folder, texts, bundle.folder, wish, self.tokens, threads=threads, report=report)


@dataclass(frozen=True, slots=True)
class Learning:
    """How it learns, and for how long."""

    loss: Annotated[
        LossName, typer.Option("--loss", rich_help_panel=LEARNING, help="What it is taught by.")
    ] = "kl"
    epochs: Annotated[float, share_of("--epochs", None, "Passes over the answers.")] = 6.0
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            metavar="X",
            min=0,
            show_default="no limit",
            rich_help_panel=LEARNING,
            help="Stop learning after this time, all runs together.",
        ),
    ] = None
    batch: Annotated[int, number("--batch", 64, None, LEARNING, "Tokens a step, about.")] = 512
    rate: Annotated[float, share_of("--rate", None, "Highest learning rate.")] = 3e-3
    prompt_share: Annotated[
        float, share_of("--prompt-share", 1, "Of the places in prompts so many are learnt too, at a time.")
    ] = 0.4
    seed: Annotated[int, number("--seed", 0, None, LEARNING, "Same seed and answers, same weights.")] = 0
    threads: Annotated[int | None, number("--threads", 1, "one a core", LEARNING, "Of the processor.")] = None
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", rich_help_panel=LEARNING, help="Of torch: cpu, cuda.")
    ] = "cpu"

    def check(self) -> None:
        """Raise BadParameter where no step would be learnt: what is there must not be written over."""
        for flag, most in (("--epochs", self.epochs), ("--minutes", self.minutes)):
            if most is not None and not most > 0:
                raise typer.BadParameter(f"{most:g} leaves no time to learn in", param_hint=flag)
        for one in fields(self):
            given = getattr(self, one.name)
            if isinstance(given, float) and not math.isfinite(given):
                flag = f"--{one.name.replace('_', '-')}"
                raise typer.BadParameter(f"{given} is not a finite number", param_hint=flag)
        if not self.rate:
            raise typer.BadParameter("0 learns nothing", param_hint="--rate")

    def common(self) -> dict[str, Any]:
        """The fields of every recipe of the trainer."""
        return {
            "epochs": self.epochs,
            "minutes": math.inf if self.minutes is None else self.minutes,
            "rate": self.rate,
            "loss": self.loss,
            "seed": self.seed,
            "device": checked_device(self.device),
        }


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C says what became of the work, above the exit code."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped: what was done is kept, and the same command goes on with it", file=sys.stderr)
        raise


def checked_device(name: str) -> str:
    """The same name. Raises BadParameter for a device that torch does not have here."""
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError):
        raise typer.BadParameter(f"torch has no {name!r:.40} here", param_hint="--device") from None
    return name
