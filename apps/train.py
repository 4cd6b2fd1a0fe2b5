"""`paceline train`: small models of your own, from text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.flags import with_flags

if TYPE_CHECKING:
    from collections.abc import Callable

    from paceline.export.training.corpus import Corpus
    from paceline.export.training.lm import Recipe, Shape

train = typer.Typer(help="Train a small model from text, a drafter for it, or a draft head for a bundle.")

SIZE = "Size of the model"
OutArgument = Annotated[
    Path, typer.Argument(metavar="OUT", show_default=False, help="Folder of the trained model.")
]

FromOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="DIR|BUNDLE",
        show_default="random weights",
        help="Go on from the weights of a trained folder, or of a bundle made of one without --quant.",
    ),
]


def _size(
    flag: str, least: int = 1, most: int | None = None, default: int | None = None
) -> typer.models.OptionInfo:
    shown = True if default is None else str(default)
    made: typer.models.OptionInfo = typer.Option(
        flag, metavar="N", min=least, max=most, rich_help_panel=SIZE, help="", show_default=shown
    )
    return made


@dataclass(frozen=True, slots=True)
class Teaching:
    """What is learnt from, and for how long."""

    text: Annotated[
        list[str],
        typer.Option(
            "--text",
            metavar="FILE[=WEIGHT]",
            help="Stories: .jsonl or .jsonl.gz with a field 'text', or plain text cut at <|endoftext|>. "
            "An epoch repeats the file WEIGHT times. Repeatable.",
        ),
    ]
    epochs: Annotated[float, typer.Option("--epochs", metavar="X", min=0, help="Passes over it.")] = 1.5
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="X", min=0, show_default="no limit", help="Stop after this time."),
    ] = None
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Rows a step.")] = 12
    rate: Annotated[
        float, typer.Option("--rate", metavar="X", min=0, help="Highest learning rate, of the matrices.")
    ] = 2e-3
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Same seed, same model.")] = 0
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, show_default="one a core", help="Threads of torch."),
    ] = None

    def check(self, out: Path) -> None:
        """Raise ValueError, before anything takes time, where there is no text or the model cannot be written."""
        from paceline.export.atomic import check_folder
        from paceline.export.training.corpus import Source

        check_folder(out)
        if (out / "model.safetensors").exists() and not (out / "checkpoint.pt").is_file():
            raise ValueError(
                f"{out} holds a model without a checkpoint to go on from: train into another folder"
            )
        for text in self.text:
            Source.parse(text).check()

    def begin(self, say: Callable[[str], None]) -> Corpus:
        """Set the threads and read the text."""
        import torch
        from transformers.utils import logging

        from paceline.export.training.corpus import Source, load_corpus

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        say("reading text")
        return load_corpus([Source.parse(text) for text in self.text])

    def recipe(self, chat_share: float) -> Recipe:
        """The same for the trainer."""
        from paceline.export.training.lm import Recipe

        return Recipe(
            epochs=self.epochs,
            minutes=math.inf if self.minutes is None else self.minutes,
            batch=self.batch,
            rate=self.rate,
            chat_share=chat_share,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of the model: what is not given is `Shape`'s, or that of the weights to go on from."""

    vocab: Annotated[int | None, _size("--vocab", 260, 65535, default=4096)] = None
    hidden: Annotated[int | None, _size("--hidden", 8, default=256)] = None
    layers: Annotated[int | None, _size("--layers", default=8)] = None
    heads: Annotated[int | None, _size("--heads", default=4)] = None
    kv_heads: Annotated[int | None, _size("--kv-heads", default=2)] = None
    ffn: Annotated[int | None, _size("--ffn", 8, default=704)] = None
    context: Annotated[int | None, _size("--context", 8, default=512)] = None

    def shape(self, known: dict[str, int]) -> Shape:
        """The whole shape. Raises BadParameter where a flag contradicts the weights; only the context may change."""
        from paceline.export.training.lm import Shape

        given = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        for name in given.keys() & known.keys() - {"context"}:
            if given[name] != known[name]:
                flag = "--" + name.replace("_", "-")
                raise typer.BadParameter(
                    f"{given[name]}, but the weights have {known[name]}", param_hint=flag
                )
        shape = Shape(**{**known, **given})
        _check(shape.hidden, shape.heads, shape.kv_heads)
        return shape


@train.callback(invoke_without_command=True)
def _train(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@train.command()
@with_flags
def lm(
    *,
    out: OutArgument,
    teaching: Teaching,
    chat_share: Annotated[
        float,
        typer.Option("--chat-share", metavar="X", min=0, max=1, help="Stories told on request."),
    ] = 0.6,
    sizes: Sizes,
    begin: FromOption = None,
) -> None:
    """Train a small Llama from text into OUT; the same command again goes on where it stopped."""
    from paceline.export.training.lm import train as train_lm
    from paceline.export.training.rows import StoryStream
    from paceline.export.training.start import start_from
    from paceline.train_bar import of_lm, training_bar

    start = None if begin is None else start_from(begin)
    shape = sizes.shape(start.shape if start else {})
    teaching.check(out)
    with training_bar() as (say, show):
        corpus = teaching.begin(say)
        recipe = teaching.recipe(chat_share)
        tokenizer = _vocabulary(corpus, (out, begin), shape.vocab, say)
        say("encoding")
        stream = StoryStream(corpus, tokenizer, recipe, shape.context)
        say("training")
        train_lm(
            stream, corpus.held_out, tokenizer, shape, recipe, out, of_lm(show), begin=start and start.weights
        )
    print(f"wrote {out}; next: paceline export {out} BUNDLE")


@train.command()
@with_flags
def distill(
    *,
    out: OutArgument,
    target: Annotated[
        Path, typer.Option("--target", metavar="DIR", show_default=False, help="Model made by 'train lm'.")
    ],
    teaching: Teaching,
    begin: FromOption = None,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", min=1000, help="Let the target write this many tokens.")
    ] = 1_000_000,
    hidden: Annotated[int, _size("--hidden", 8)] = 96,
    layers: Annotated[int, _size("--layers")] = 2,
    heads: Annotated[int, _size("--heads")] = 3,
    kv_heads: Annotated[int, _size("--kv-heads")] = 1,
    ffn: Annotated[int, _size("--ffn", 8)] = 384,
) -> None:
    """Train a drafter for a target on what the target itself writes."""
    _check(hidden, heads, kv_heads)
    from paceline.train_bar import of_lm, training_bar

    teaching.check(out)
    if not (target / "config.json").is_file():
        raise ValueError(f"no model at {target}: train one with 'paceline train lm {target} --text FILE'")
    with training_bar() as (say, show):
        corpus = teaching.begin(say)
        from paceline.export.training import distill as teach
        from paceline.export.training.lm import Shape
        from paceline.export.training.lm import train as train_lm
        from paceline.export.training.start import start_from

        start = None if begin is None else start_from(begin, drafter=True)
        model, tokenizer = teach.load_target(target)
        shape = Shape(hidden, layers, heads, kv_heads, ffn, model.config.vocab_size, _context(model))
        recipe = teaching.recipe(chat_share=0.0)

        def writing(share: float) -> None:
            say(f"the target writes {share:.0%}")

        written = teach.own_output(model, tokenizer, corpus, tokens, teaching.seed, writing, out)
        stream = teach.OwnOutputStream(written, recipe, shape.context)
        say("training")
        loss = teach.distillation_loss(model)
        made = train_lm(
            stream, corpus.held_out, tokenizer, shape, recipe, out, of_lm(show), loss, start and start.weights
        )
        say("comparing")
        fresh = teach.own_output(model, tokenizer, corpus, 5000, teaching.seed + 1, lambda share: None)
        agreed = teach.agreement(model, made.eval(), fresh)  # type: ignore[no-untyped-call]
    print(f"wrote {out}; at temperature 1 the target accepts {agreed:.0%} of its tokens")
    print(f"next: paceline export {target} BUNDLE --drafter small={out}")


def _context(model: Any) -> int:
    return int(model.config.max_position_embeddings)


def _check(hidden: int, heads: int, kv_heads: int) -> None:
    if hidden % heads or (hidden // heads) % 2:
        raise typer.BadParameter(
            f"{hidden} does not split into {heads} heads of even width", param_hint="--hidden"
        )
    if heads % kv_heads:
        raise typer.BadParameter(
            f"{heads} heads do not share {kv_heads} key/value heads", param_hint="--kv-heads"
        )


def _vocabulary(
    corpus: Corpus, folders: tuple[Path, Path | None], vocab: int, say: Callable[[str], None]
) -> Any:
    """The vocabulary in the first of the folders that has one when training goes on, else a new one."""
    from tokenizers import Tokenizer

    from paceline.export.training.vocabulary import train_vocabulary
    from paceline.runtime.bundle.whole_file import write_atomically

    for folder in folders:
        if folder is not None and (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
    say("building vocabulary")
    tokenizer = train_vocabulary(corpus.train, vocab)
    write_atomically(folders[0] / "tokenizer.json", tokenizer.to_str(pretty=True).encode(), private=False)
    return tokenizer
