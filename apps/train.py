"""`paceline train`: small models of your own, from text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from paceline.export.training.lm import Progress

train = typer.Typer(help="Train a small model from text, or a drafter for it.", no_args_is_help=False)

SIZE = "Size of the model"


@train.callback(invoke_without_command=True)
def _train(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@train.command()
def lm(
    *,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", show_default=False, help="Folder of the trained model.")
    ],
    text: Annotated[
        list[str],
        typer.Option(
            "--text",
            metavar="FILE[=WEIGHT]",
            help="Stories: .jsonl or .jsonl.gz with a field 'text', or plain text cut at <|endoftext|>. "
            "An epoch repeats the file WEIGHT times. Repeatable.",
        ),
    ],
    epochs: Annotated[
        float, typer.Option("--epochs", metavar="X", min=0, help="Passes over the text.")
    ] = 1.5,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="X", min=0, show_default="no limit", help="Stop after this time."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Rows a step.")] = 12,
    chat_share: Annotated[
        float,
        typer.Option(
            "--chat-share", metavar="X", min=0, max=1, help="Stories told as an answer to a request."
        ),
    ] = 0.6,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0)] = 0,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, show_default="one a core")
    ] = None,
    vocab: Annotated[
        int, typer.Option("--vocab", metavar="N", min=260, max=65535, rich_help_panel=SIZE)
    ] = 4096,
    hidden: Annotated[int, typer.Option("--hidden", metavar="N", min=8, rich_help_panel=SIZE)] = 256,
    layers: Annotated[int, typer.Option("--layers", metavar="N", min=1, rich_help_panel=SIZE)] = 8,
    heads: Annotated[int, typer.Option("--heads", metavar="N", min=1, rich_help_panel=SIZE)] = 4,
    kv_heads: Annotated[int, typer.Option("--kv-heads", metavar="N", min=1, rich_help_panel=SIZE)] = 2,
    ffn: Annotated[int, typer.Option("--ffn", metavar="N", min=8, rich_help_panel=SIZE)] = 704,
    context: Annotated[int, typer.Option("--context", metavar="N", min=8, rich_help_panel=SIZE)] = 512,
) -> None:
    """Train a small Llama from text into OUT; run again with the same OUT to go on where it stopped."""
    _check(hidden, heads, kv_heads)
    import torch
    from paceline.export.training.lm import Recipe, Shape, StoryStream
    from paceline.export.training.lm import train as train_lm

    shape = Shape(hidden, layers, heads, kv_heads, ffn, vocab, context)
    recipe = Recipe(
        epochs=epochs,
        minutes=math.inf if minutes is None else minutes,
        batch=batch,
        chat_share=chat_share,
        seed=seed,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    with _progress() as (say, report):
        say("reading text")
        corpus, tokenizer = _text(text, out, vocab, say)
        say("encoding")
        stream = StoryStream(corpus, tokenizer, recipe, shape.context)
        say("training")
        train_lm(stream, corpus.held_out, tokenizer, shape, recipe, out, report)
    print(f"wrote {out}; next: paceline export {out} BUNDLE")


def _check(hidden: int, heads: int, kv_heads: int) -> None:
    if hidden % heads or (hidden // heads) % 2:
        raise typer.BadParameter(
            f"{hidden} does not split into {heads} heads of even width", param_hint="--hidden"
        )
    if heads % kv_heads:
        raise typer.BadParameter(
            f"{heads} heads do not share {kv_heads} key/value heads", param_hint="--kv-heads"
        )


def _text(text: list[str], out: Path, vocab: int, say: Callable[[str], None]) -> tuple[Any, Any]:
    """The corpus, and the vocabulary: the one in `out` when training goes on, else a new one."""
    from paceline.export.training.corpus import Source, load_corpus
    from paceline.export.training.vocabulary import train_vocabulary
    from tokenizers import Tokenizer

    corpus = load_corpus([Source.parse(t) for t in text])
    path = out / "tokenizer.json"
    if path.is_file():
        return corpus, Tokenizer.from_file(str(path))
    say("vocabulary")
    tokenizer = train_vocabulary(corpus.train, vocab)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return corpus, tokenizer


@contextmanager
def _progress() -> Iterator[tuple[Callable[[str], None], Callable[[Progress], None]]]:
    """A bar on stderr with loss and held-out bits per byte."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=1.0)
        held_out = ""

        def say(stage: str) -> None:
            bar.update(task, description=stage)

        def report(progress: Any) -> None:
            nonlocal held_out
            if progress.held_out is not None:
                held_out = f", held out {progress.held_out:.3f} bits/byte"
                bar.console.print(f"step {progress.step}: loss {progress.loss:.3f}{held_out}")
            rate = f", {progress.tokens_per_second:.0f} tokens/s" if progress.tokens_per_second else ""
            bar.update(
                task,
                completed=progress.done,
                description=f"step {progress.step} loss {progress.loss:.3f}{held_out}{rate}",
            )

        yield say, report
