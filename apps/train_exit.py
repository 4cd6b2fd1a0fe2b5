"""`paceline train exit`: early layers of a bundle's target learn to say what it will say."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.flags import with_flags
from paceline.train_answers import Asked, Learning, interruptible, number

if TYPE_CHECKING:
    from paceline.export.training.exits import Pupil

EXIT = "The exit"


@with_flags
def exit_command(
    *,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", show_default=False, help="Folder of the trained exit.")
    ],
    target: Annotated[
        Path,
        typer.Option(
            "--target",
            metavar="BUNDLE",
            show_default=False,
            help="A bundle whose target gives taps: hidden, and those of the layers to leave behind.",
        ),
    ],
    asked: Asked,
    learning: Learning,
    rank: Annotated[int, number("--rank", 1, None, EXIT, "Of the matrices of each layer.")] = 64,
    vocab: Annotated[
        int | None, number("--vocab", 16, "8192", EXIT, "Tokens that it can name: the most frequent ones.")
    ] = None,
    draft_share: Annotated[
        float,
        typer.Option(
            "--draft-share",
            metavar="X",
            min=0,
            rich_help_panel=EXIT,
            help="Drafting a round takes so much of a pass of the target: that decides which layer is used.",
        ),
    ] = 0.3,
) -> None:
    """Train what lets early layers of a bundle's target say what it will say into OUT; the same command again goes on
    where it stopped."""
    from paceline.export.atomic import check_folder
    from paceline.export.skips.early import shares_of_bytes
    from paceline.export.training.answers import FINAL
    from paceline.export.training.exits_choice import check_there, layers_of
    from paceline.runtime.bundle.bundle import open_bundle
    from paceline.runtime.model.processors import default_threads
    from paceline.store import chosen_bundle
    from paceline.train_bar import of_exit, training_bar

    learning.check()
    check_folder(out)
    texts = asked.texts()
    bundle = open_bundle(Path(chosen_bundle(target)))
    folder = asked.answers or out / "answers"
    written = None if texts else asked.found(folder, bundle, [FINAL])
    given = written.taps if written else bundle.manifest.target.taps
    layers = layers_of(given, bundle)
    known = check_there(out, bundle, layers, rank, vocab)
    threads = learning.threads or default_threads()
    with interruptible(), training_bar() as (say, show):
        import torch

        from paceline.export.training import loop
        from paceline.export.training.exits import Costs, Course, train_exits
        from paceline.export.training.heads.target import read_target

        torch.set_num_threads(threads)
        taps = tuple(f"hidden.{layer}" for layer in layers)
        read = read_target(bundle)  # what cannot be trained for is refused before it answers anything
        answers = written or asked.made(folder, bundle, taps, texts, threads, say)
        say("reading answers")
        wish = answers.index.wish
        course = Course(
            conversations=list(answers),
            given=answers.taps,
            target=read,
            layers=layers,
            rank=rank,
            vocab=known,
            ends=bundle.generation.eos_ids,
            batch=learning.batch,
            longest=wish.prompt + wish.longest,
            prompts=learning.prompt_share,
        )
        shares, head = shares_of_bytes(bundle, layers)
        say("training")
        recipe = loop.Recipe(**learning.common())
        made, covered = train_exits(course, Costs(shares, head, draft_share), recipe, out, of_exit(show))
    _tell(out, bundle.folder, made, covered)


def _tell(out: Path, bundle: Path, made: Pupil, covered: float) -> None:
    """What came of it by layer, and what to do with it. covered: share of held-out tokens that it knows."""
    steps = made.steps()
    print(f"wrote {out}, measured on answers that it has not seen:")
    for layer, found in made.recall.items():
        ranks = ", ".join(f"{found[rank - 1]:.0%} of {rank}" for rank in (1, 2, 4, 8))
        chosen = ", chosen" if layer == made.layer else ""
        print(
            f"  layer {layer}: names the model's choice among {ranks}; a step {steps[layer]:.2f} passes{chosen}"
        )
    if not made.whole:
        print(f"  {covered:.1%} of the tokens are in its vocabulary")
    print(f"next: {shlex.join(['paceline', 'export', str(bundle), 'OUT', '--split', str(out)])}")
