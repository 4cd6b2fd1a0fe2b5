"""`paceline train head`: a draft head for a bundle, taught by the bundle's own answers."""

from __future__ import annotations

import math
import shlex
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paceline.flags import with_flags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from paceline.export.training.answers import Answers
    from paceline.export.training.heads.choice import Choice
    from paceline.export.training.heads.trainer import Recipe
    from paceline.runtime.bundle.bundle import Bundle

ANSWERS, HEAD, LEARNING = "The answers", "The head", "Learning"
Method = Literal["eagle", "eagle3", "medusa", "hydra"]
LossName = Literal["ce", "kl", "rkl", "jsd", "tvd", "tvd++", "lk"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the target answers, for the head to learn from."""

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
            help="Where answers are kept: several heads of a target can learn from the same ones.",
        ),
    ] = None

    def texts(self) -> list[str]:
        """All prompts, each once. Raises ValueError for a file that holds none."""
        from paceline.bench_prompts import read_tasks

        for path in self.prompts:
            if not path.is_file():
                raise ValueError(f"no file of prompts at {path}")
        return list(dict.fromkeys(task.turns[0] for path in self.prompts for task in read_tasks(path)))

    def found(self, folder: Path, bundle: Bundle) -> Answers:
        """Answers that were written before. Raises ValueError where there are none of this bundle."""
        from paceline.export.heads.config import target_id
        from paceline.export.training.answers import INDEX, Answers

        if not (folder / INDEX).is_file():
            raise ValueError(
                f"there are no answers at {folder} yet: give --prompts FILE to have some written"
            )
        answers = Answers(folder)
        if answers.index.target != target_id(bundle.manifest):
            raise ValueError(
                f"{folder} holds answers of another export than {bundle.folder} is: give --prompts FILE and another "
                "--answers folder to have some written"
            )
        if missing := [tap for tap in answers.taps if tap not in bundle.manifest.target.taps]:
            raise ValueError(f"{folder} has {', '.join(missing)}, which {bundle.folder} does not give")
        return answers

    def made(
        self,
        folder: Path,
        bundle: Bundle,
        taps: Sequence[str],
        texts: Sequence[str],
        threads: int,
        say: Callable[[str], None],
    ) -> Answers:
        """Let the target answer what is not answered yet."""
        from paceline.export.training.answers import FINAL, Wish, write_answers

        wish = Wish(taps=tuple(tap for tap in taps if tap != FINAL), longest=self.longest)

        def report(done: int) -> None:
            say(f"the target answers {min(1.0, done / self.tokens):.0%}")

        return write_answers(folder, texts, bundle.folder, wish, self.tokens, threads=threads, report=report)


def _number(flag: str, least: int, default: str | None, panel: str, words: str) -> typer.models.OptionInfo:
    made: typer.models.OptionInfo = typer.Option(
        flag, metavar="N", min=least, show_default=default or True, rich_help_panel=panel, help=words
    )
    return made


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of the head: what is not given is that of the head in OUT, or of the target."""

    vocab: Annotated[
        int | None, _number("--vocab", 16, "8192", HEAD, "Tokens that it can draft: the most frequent ones.")
    ] = None
    depth: Annotated[
        int | None,
        _number(
            "--depth",
            1,
            "8 for eagle and eagle3, else 4",
            HEAD,
            "Tokens that it drafts at a time: 8 at most.",
        ),
    ] = None
    inner: Annotated[
        int | None, _number("--inner", 8, "the target's", HEAD, "Width of its feed-forward layer.")
    ] = None
    tied: Annotated[
        bool | None,
        typer.Option(
            "--tied/--untied",
            show_default="untied",
            rich_help_panel=HEAD,
            help="One table for its embedding and its LM head: smaller.",
        ),
    ] = None

    def choice(self, method: Method) -> Choice:
        """The same for the trainer."""
        from paceline.export.heads.config import DEEPEST
        from paceline.export.training.heads.choice import Choice

        if self.depth is not None and self.depth > DEEPEST:
            raise typer.BadParameter(f"{self.depth} is more than {DEEPEST}", param_hint="--depth")
        if self.tied and method == "medusa":
            raise typer.BadParameter("Medusa has no embedding to tie to", param_hint="--tied")
        return Choice(method, self.vocab, self.depth, self.inner, self.tied)


def _share(flag: str, most: float | None, words: str) -> typer.models.OptionInfo:
    made: typer.models.OptionInfo = typer.Option(
        flag, metavar="X", min=0, max=most, rich_help_panel=LEARNING, help=words
    )
    return made


@dataclass(frozen=True, slots=True)
class Learning:
    """How the head learns, and for how long."""

    loss: Annotated[
        LossName, typer.Option("--loss", rich_help_panel=LEARNING, help="What it is taught by.")
    ] = "kl"
    epochs: Annotated[float, _share("--epochs", None, "Passes over the answers.")] = 6.0
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
    batch: Annotated[int, _number("--batch", 64, None, LEARNING, "Tokens a step, about.")] = 512
    rate: Annotated[float, _share("--rate", None, "Highest learning rate.")] = 3e-3
    unroll: Annotated[
        int | None,
        _number(
            "--unroll",
            1,
            "5, or all that it has; 1 for eagle",
            LEARNING,
            "Levels of a draft that are learnt.",
        ),
    ] = None
    share: Annotated[
        float,
        _share("--share", 1, "Of the places in a text so many learn the levels after the first, at a time."),
    ] = 0.5
    prompt_share: Annotated[
        float, _share("--prompt-share", 1, "Of the places in prompts so many are learnt too, at a time.")
    ] = 0.4
    features: Annotated[
        float | None,
        typer.Option(
            "--features",
            metavar="X",
            min=0,
            show_default="3, or 10 for eagle",
            rich_help_panel=LEARNING,
            help="Weight of the target's own last states, beside the loss.",
        ),
    ] = None
    seed: Annotated[int, _number("--seed", 0, None, LEARNING, "Same seed and answers, same head.")] = 0
    threads: Annotated[int | None, _number("--threads", 1, "one a core", LEARNING, "Of the processor.")] = (
        None
    )
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", rich_help_panel=LEARNING, help="Of torch: cpu, cuda.")
    ] = "cpu"

    def check(self) -> None:
        """Raise BadParameter where no step would be learnt: a head must not be written over nothing."""
        for flag, most in (("--epochs", self.epochs), ("--minutes", self.minutes)):
            if most is not None and not most > 0:
                raise typer.BadParameter(f"{most:g} leaves no time to learn in", param_hint=flag)

    def recipe(self, method: Method, depth: int) -> Recipe:
        """The same for the trainer, for a head of so many levels."""
        from paceline.export.training.heads.choice import USUAL
        from paceline.export.training.heads.trainer import Recipe

        if self.unroll is not None and self.unroll > depth:
            raise typer.BadParameter(
                f"{self.unroll}, but the head drafts {depth} tokens at most", param_hint="--unroll"
            )
        usual = USUAL[method]
        return Recipe(
            epochs=self.epochs,
            minutes=math.inf if self.minutes is None else self.minutes,
            rate=self.rate,
            loss=self.loss,
            levels=self.unroll or min(usual.levels, depth),
            share=self.share,
            features=usual.features if self.features is None else self.features,
            seed=self.seed,
            device=checked_device(self.device),
        )


@with_flags
def head(
    *,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", show_default=False, help="Folder of the trained head.")
    ],
    method: Annotated[
        Method, typer.Option("--method", show_default=False, help="What kind of head: see docs/heads.md.")
    ],
    target: Annotated[
        Path,
        typer.Option(
            "--target", metavar="BUNDLE", show_default=False, help="A bundle whose target gives taps."
        ),
    ],
    asked: Asked,
    sizes: Sizes,
    learning: Learning,
) -> None:
    """Train a head that drafts for a bundle into OUT; the same command again goes on where it stopped."""
    from paceline.export.atomic import check_folder
    from paceline.export.training.heads.choice import check_choice, depth_of, read_by, taps_of
    from paceline.runtime.bundle.bundle import open_bundle
    from paceline.runtime.model.processors import default_threads
    from paceline.store import chosen_bundle
    from paceline.train_bar import of_head, training_bar

    learning.check()
    check_folder(out)
    choice = sizes.choice(method)
    depth = depth_of(choice, check_choice(out, choice))
    texts = asked.texts()
    bundle = open_bundle(Path(chosen_bundle(target)))
    taps = taps_of(bundle)
    folder = asked.answers or out / "answers"
    written = None if texts else asked.found(folder, bundle)
    threads = learning.threads or default_threads()
    recipe = learning.recipe(method, depth)
    with _interruptible(), training_bar() as (say, show):
        import torch

        from paceline.export.training.heads.course import make_course
        from paceline.export.training.heads.trainer import train_head

        torch.set_num_threads(threads)
        answers = written or asked.made(folder, bundle, taps, texts, threads, say)
        say("reading answers")
        wish = answers.index.wish
        course = make_course(
            out,
            bundle,
            choice,
            list(answers),
            read_by(method, answers.taps),
            learning.batch,
            wish.prompt + wish.longest,
            learning.seed,
            learning.prompt_share,
        )
        say("training")
        last = train_head(
            course.head, course.target, course.batches, course.yardstick, recipe, out, of_head(show)
        )
    levels = ", ".join(f"{share:.0%}" for share in last.accepted[:4])
    print(f"wrote {out}, measured on answers that it has not seen:")
    print(f"  greedy drafts are right in {levels} of the cases, level by level;")
    print(f"  a chain of 4 would bring {last.round_tokens:.2f} tokens a round;")
    print(f"  {course.covered:.1%} of the tokens are in its vocabulary")
    print(f"next: {shlex.join(['paceline', 'export', str(bundle.folder), 'OUT', '--head', f'fast={out}'])}")


@contextmanager
def _interruptible() -> Iterator[None]:
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
