"""`paceline train drafter`: a small draft model for a bundle, taught by the bundle's own answers."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paceline.flags import with_flags
from paceline.train_answers import Asked, Learning, interruptible, number, share_of

if TYPE_CHECKING:
    from paceline.export.training.drafter.course import Lesson
    from paceline.export.training.drafter.lessons import Recipe
    from paceline.export.training.drafter.shape import Sizes

DRAFTER, TEXTS = "The drafter", "Texts before the answers"


@dataclass(frozen=True, slots=True)
class Size:
    """The size of the drafter: what is not given is that of the one in OUT, or follows from the target."""

    hidden: Annotated[
        int | None, number("--hidden", 8, "for 9 % of the target's parameters", DRAFTER, "Its width.")
    ] = None
    layers: Annotated[
        int | None, number("--layers", 1, "a tenth of the target's, 2 at least", DRAFTER, "Its layers.")
    ] = None
    heads: Annotated[
        int | None, number("--heads", 1, "of 64 columns, or of 32", DRAFTER, "Its attention heads.")
    ] = None
    kv_heads: Annotated[
        int | None, number("--kv-heads", 1, "1", DRAFTER, "Those with keys of their own.")
    ] = None
    ffn: Annotated[
        int | None, number("--ffn", 8, "8/3 of its width", DRAFTER, "Width of its feed-forward layers.")
    ] = None
    streams: Annotated[
        int | None,
        typer.Option(
            "--streams",
            metavar="N",
            min=0,
            max=15,
            show_default="0",
            rich_help_panel=DRAFTER,
            help="Later tokens that a pass drafts beside the next one.",
        ),
    ] = None
    table: Annotated[
        Literal["projected", "random"],
        typer.Option(
            "--table",
            rich_help_panel=DRAFTER,
            help="What its table of tokens begins as: the target's own, in fewer columns, or noise.",
        ),
    ] = "projected"

    def sizes(self) -> Sizes:
        """The same for the trainer."""
        from paceline.export.training.drafter.shape import Sizes

        return Sizes(self.hidden, self.layers, self.heads, self.kv_heads, self.ffn, self.streams)


@dataclass(frozen=True, slots=True)
class DrafterLearning(Learning):
    """How a drafter learns."""

    on_policy: Annotated[
        float,
        share_of(
            "--on-policy",
            1,
            "Of the answers so many are gone on with by the drafter, for the target to judge.",
        ),
    ] = 0.0
    text: Annotated[
        list[str],
        typer.Option(
            "--text",
            metavar="FILE[=WEIGHT]",
            show_default="none",
            rich_help_panel=TEXTS,
            help="Learn these first: .jsonl or .jsonl.gz with a field 'text', or plain text. Repeatable.",
        ),
    ] = field(default_factory=list)
    text_epochs: Annotated[
        float,
        typer.Option("--text-epochs", metavar="X", min=0, rich_help_panel=TEXTS, help="Passes over them."),
    ] = 1.0
    text_share: Annotated[
        float,
        typer.Option(
            "--text-share", metavar="X", min=0, max=1, rich_help_panel=TEXTS, help="Of --minutes, at most."
        ),
    ] = 0.5

    def check(self) -> None:
        """See `Learning`; texts must be there, and what the drafter writes is judged by laws alone."""
        from paceline.export.training.corpus import Source

        super(DrafterLearning, self).check()
        if self.on_policy and self.loss == "ce":
            raise typer.BadParameter(
                "--loss ce teaches the drafter what it wrote itself: choose another loss",
                param_hint="--on-policy",
            )
        for text in self.text:
            Source.parse(text).check()

    def lesson(self, table: Literal["projected", "random"], threads: int) -> Lesson:
        """What there is to learn from, for the trainer."""
        from paceline.export.training.corpus import Source
        from paceline.export.training.drafter.course import Lesson

        return Lesson(
            size=self.batch,
            prompts=self.prompt_share,
            threads=threads,
            table=table,
            text=tuple(Source.parse(text) for text in self.text),
            text_epochs=self.text_epochs,
            text_share=self.text_share,
        )

    def recipe(self) -> Recipe:
        """The same for the trainer."""
        from paceline.export.training.drafter.lessons import Recipe

        return Recipe(**self.common(), own=self.on_policy)


@with_flags
def drafter(
    *,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", show_default=False, help="Folder of the trained drafter.")
    ],
    target: Annotated[
        Path,
        typer.Option("--target", metavar="BUNDLE", show_default=False, help="A bundle; it needs no taps."),
    ],
    asked: Asked,
    size: Size,
    learning: DrafterLearning,
    begin: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR|BUNDLE",
            show_default="new weights",
            rich_help_panel=DRAFTER,
            help="Begin with a trained drafter, or the draft model of a bundle made without --quant.",
        ),
    ] = None,
) -> None:
    """Train a small draft model for a bundle into OUT; the same command again goes on where it stopped."""
    from paceline.export.atomic import check_folder
    from paceline.runtime.bundle.bundle import open_bundle
    from paceline.runtime.model.processors import default_threads
    from paceline.store import chosen_bundle
    from paceline.train_bar import of_head, training_bar

    learning.check()
    check_folder(out)
    texts = asked.texts()
    bundle = open_bundle(Path(chosen_bundle(target)))
    from paceline.export.heads.config import target_id
    from paceline.export.training.drafter.shape import check_drafter, sizes_from, where_begun
    from paceline.export.training.start import start_from

    part, name, sizes = bundle.manifest.target, target_id(bundle.manifest), size.sizes()
    start = None if begin is None else start_from(begin, drafter=True)
    if start is not None:
        sizes = sizes_from(start, sizes, part)
    check_drafter(out, sizes, name, part)
    shape = check_drafter(where_begun(out, bool(learning.text)), sizes, name, part)
    folder = asked.answers or out / "answers"
    written = None if texts else asked.found(folder, bundle)
    threads = learning.threads or default_threads()
    recipe = learning.recipe()
    with interruptible(), training_bar() as (say, show):
        import torch
        from transformers.utils import logging

        from paceline.export.training.drafter.course import make_course, train_drafter

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        torch.set_num_threads(threads)
        answers = written or asked.made(folder, bundle, None, texts, threads, say)
        say("reading answers")
        lesson = learning.lesson(size.table, threads)
        weights = None if start is None else start.weights
        course = make_course(out, bundle, shape, answers, lesson, recipe, weights)
        say("training")
        last = train_drafter(course, of_head(show))
    parameters = course.parameters / 1e6
    levels = ", ".join(f"{share:.0%}" for share in last.accepted[:4])
    print(f"wrote {out}, {parameters:.1f} M parameters, measured on answers that it has not seen:")
    print(f"  greedy drafts are right in {levels} of the cases, level by level;")
    print(f"  at temperature 1 the target accepts {last.alpha[0]:.0%} of its tokens;")
    print(f"  a chain of {len(last.accepted[:4])} would bring {last.round_tokens:.2f} tokens a round")
    print(
        f"next: {shlex.join(['paceline', 'export', str(bundle.folder), 'OUT', '--drafter', f'small={out}'])}"
    )
