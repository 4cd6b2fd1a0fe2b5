"""`paceline train head`: a draft head for a bundle, taught by the bundle's own answers."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paceline.flags import with_flags
from paceline.train_answers import LEARNING, Asked, Learning, interruptible, number

if TYPE_CHECKING:
    from paceline.export.training.heads.choice import Choice
    from paceline.export.training.heads.measure import Measured
    from paceline.export.training.heads.trainer import Recipe

HEAD = "The head"
Method = Literal["eagle", "eagle3", "medusa", "hydra", "dflash", "clover", "falcon", "kangaroo"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of the head: what is not given is that of the head in OUT, or of the target."""

    vocab: Annotated[
        int | None, number("--vocab", 16, "8192", HEAD, "Tokens that it can draft: the most frequent ones.")
    ] = None
    depth: Annotated[
        int | None,
        number(
            "--depth",
            1,
            "8 for eagle, eagle3 and falcon, 7 for dflash, 6 for kangaroo, else 4",
            HEAD,
            "Tokens that it drafts at a time: 8 at most, 15 of dflash.",
        ),
    ] = None
    inner: Annotated[
        int | None, number("--inner", 8, "the target's", HEAD, "Width of its feed-forward layer.")
    ] = None
    layers: Annotated[
        int | None, number("--layers", 1, "3", HEAD, "Layers of a dflash head: 16 at most.")
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
        from paceline.export.heads.config import DEEPEST, WIDEST
        from paceline.export.training.heads.choice import Choice

        most = WIDEST if method == "dflash" else DEEPEST
        if self.depth is not None and self.depth > most:
            raise typer.BadParameter(f"{self.depth} is more than {most}", param_hint="--depth")
        if self.layers is not None and (method != "dflash" or self.layers > 16):
            raise typer.BadParameter("1 to 16, and for dflash alone", param_hint="--layers")
        if self.tied and method in ("medusa", "kangaroo"):
            raise typer.BadParameter(f"{method.capitalize()} has no embedding to tie to", param_hint="--tied")
        if self.inner is not None and method == "kangaroo":
            raise typer.BadParameter("Kangaroo has no feed-forward layer", param_hint="--inner")
        return Choice(method, self.vocab, self.depth, self.inner, self.tied, self.layers)


@dataclass(frozen=True, slots=True)
class HeadLearning(Learning):
    """How a head learns."""

    unroll: Annotated[
        int | None,
        number(
            "--unroll",
            1,
            "5, or all that it has; 1 for eagle and kangaroo, all for dflash",
            LEARNING,
            "Levels of a draft that are learnt.",
        ),
    ] = None
    share: Annotated[
        float | None,
        typer.Option(
            "--share",
            metavar="X",
            min=0,
            max=1,
            show_default="0.5, or 0.125 for dflash",
            rich_help_panel=LEARNING,
            help="Of the places in a text so many learn the levels after the first, at a time.",
        ),
    ] = None
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
            **self.common(),
            levels=self.unroll or min(usual.levels, depth),
            share=usual.share if self.share is None else self.share,
            features=usual.features if self.features is None else self.features,
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
    learning: HeadLearning,
) -> None:
    """Train a head that drafts for a bundle into OUT; the same command again goes on where it stopped."""
    from paceline.export.atomic import check_folder
    from paceline.export.training.answers import FINAL
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
    folder = asked.answers or out / "answers"
    taps = taps_of(bundle) if texts else ()
    written = None if texts else asked.found(folder, bundle, [FINAL])
    layers = bundle.manifest.target.layers
    # Refuses what cannot be taught before anything is answered.
    read_by(method, written.taps if written else taps, layers)
    threads = learning.threads or default_threads()
    recipe = learning.recipe(method, depth)
    with interruptible(), training_bar() as (say, show):
        import torch

        from paceline.export.training.heads.course import make_course
        from paceline.export.training.heads.target import read_target
        from paceline.export.training.heads.trainer import train_head

        torch.set_num_threads(threads)
        read_target(bundle)  # what cannot be trained for is refused before it answers anything
        answers = written or asked.made(folder, bundle, taps, texts, threads, say)
        say("reading answers")
        wish = answers.index.wish
        course = make_course(
            out,
            bundle,
            choice,
            list(answers),
            read_by(method, answers.taps, layers),
            learning.batch,
            wish.prompt + wish.longest,
            learning.seed,
            learning.prompt_share,
            answers.taps,
        )
        say("training")
        last = train_head(
            course.head, course.target, course.batches, course.yardstick, recipe, out, of_head(show)
        )
    _tell(out, bundle.folder, last, course.covered)


def _tell(out: Path, bundle: Path, last: Measured, covered: float) -> None:
    """What came of it, and what to do with it. covered: share of held-out tokens that its vocabulary has."""
    levels = ", ".join(f"{share:.0%}" for share in last.accepted[:4])
    print(f"wrote {out}, measured on answers that it has not seen:")
    print(f"  greedy drafts are right in {levels} of the cases, level by level;")
    print(f"  a chain of 4 would bring {last.round_tokens:.2f} tokens a round;")
    print(f"  {covered:.1%} of the tokens are in its vocabulary")
    print(f"next: {shlex.join(['paceline', 'export', str(bundle), 'OUT', '--head', f'fast={out}'])}")
