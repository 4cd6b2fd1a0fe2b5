"""The flags of `paceline export` that say what is made, and the order that they are."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paceline import export_values as values

if TYPE_CHECKING:
    from paceline.export.order import Order
    from paceline.export.skips.trained import Exit
    from paceline.export.skips.wish import SkipWish

Quant = Literal["none", "int8", "int4", "keep"]
HeadQuant = Literal["none", "int8", "int4"]
PARTS, WEIGHTS, CHECKS = "Parts", "Weights", "Checks"
_ADDED = ("drafter", "head", "skip", "exit", "split", "taps", "adapt")
_FINISHED = ("skip", "exit", "split")
"""Of these, what is made of a finished bundle alone."""
_NO_PAIR = "--predictor is for --adapt RANK, with a finished bundle in place of MODEL: give both, or neither"
_NO_HEAD = "--head-quant is for heads: name one with --head NAME=DIR"


@dataclass(frozen=True, slots=True)
class Choices:
    """What is made of a model: a field is a flag, and `order` says what it means."""

    drafter: Annotated[
        list[str] | None,
        typer.Option(
            "--drafter",
            metavar="NAME=DIR",
            rich_help_panel=PARTS,
            help="Add a draft model, of any tokenizer; repeatable. MODEL may then be a bundle.",
        ),
    ] = None
    head: Annotated[
        list[str] | None,
        typer.Option(
            "--head",
            metavar="NAME=DIR",
            rich_help_panel=PARTS,
            help="Add a trained head ('paceline train head') and the taps that it reads; repeatable. MODEL may then "
            "be a bundle.",
        ),
    ] = None
    head_quant: Annotated[
        HeadQuant | None,
        typer.Option(
            "--head-quant",
            metavar="none|int8|int4",
            show_default="int8",
            rich_help_panel=PARTS,
            help="How the weights of heads are stored.",
        ),
    ] = None
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip",
            metavar="NAME=FILE",
            rich_help_panel=PARTS,
            help="Let the bundle MODEL draft with itself, without the blocks that matter least on FILE: a text, or "
            "JSONL of prompts; repeatable.",
        ),
    ] = None
    skip_share: Annotated[
        float | None,
        typer.Option(
            "--skip-share",
            metavar="X",
            show_default="0.4",
            rich_help_panel=PARTS,
            help="How much of all blocks --skip leaves out.",
        ),
    ] = None
    skip_trials: Annotated[
        int | None,
        typer.Option(
            "--skip-trials",
            metavar="N",
            min=1,
            show_default="200",
            rich_help_panel=PARTS,
            help="Sets of blocks that --skip tries.",
        ),
    ] = None
    exit: Annotated[
        list[str] | None,
        typer.Option(
            "--exit",
            metavar="NAME=LAYER[,LAYER...]",
            rich_help_panel=PARTS,
            help="Let the bundle MODEL draft with itself, left after one of these layers, the first is 0; repeatable.",
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="DIR|LAYER",
            rich_help_panel=PARTS,
            show_default=False,
            help="Give the bundle MODEL its target in two graphs, for --mirror: split behind the layer of a trained "
            "exit ('paceline train exit'), or behind LAYER, without one.",
        ),
    ] = None
    taps: Annotated[
        list[str] | None,
        typer.Option(
            "--taps",
            metavar="TAP[,TAP...]",
            rich_help_panel=PARTS,
            help="Extra outputs of the target: hidden, hidden.0, hidden.1, ... MODEL may then be a bundle.",
        ),
    ] = None
    adapt: Annotated[
        int | None,
        typer.Option(
            "--adapt",
            metavar="RANK",
            min=1,
            max=64,
            show_default=False,
            rich_help_panel=PARTS,
            help="Let draft models learn while they are used: adapters of this rank, say 8. With --drafter those, else "
            "those of the bundle MODEL, or MODEL itself.",
        ),
    ] = None
    predictor: Annotated[
        Literal["joint", "interleaved"] | None,
        typer.Option(
            "--predictor",
            show_default=False,
            rich_help_panel=PARTS,
            help="With --adapt: learn, too, which drafts are accepted, in every training step or in turn.",
        ),
    ] = None
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision", metavar="NAME", show_default="the newest", help="Branch, tag or commit on the hub."
        ),
    ] = None
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            metavar="NAME.gguf",
            show_default=False,
            help="The GGUF file of a folder or hub id with several; of a split one, any part.",
        ),
    ] = None
    quant: Annotated[
        Quant | None,
        typer.Option(
            "--quant",
            metavar="none|int8|int4|keep",
            show_default="none; keep for a GGUF file",
            rich_help_panel=WEIGHTS,
            help="none and keep (a GGUF file's own blocks) change no value; int4 is the smallest and fastest.",
        ),
    ] = None
    block: Annotated[
        str | None,
        typer.Option(
            "--block",
            metavar="32|128|channel",
            show_default="32; chosen by matrix with int4",
            rich_help_panel=WEIGHTS,
            help="Weights of a column that share a scale; channel: all of them (int8).",
        ),
    ] = None
    bits: Annotated[
        float | None,
        typer.Option(
            "--bits",
            metavar="4.5-8.5",
            show_default="4.85",
            rich_help_panel=WEIGHTS,
            help="Size of int4 in bits a weight: each matrix gets the bits that its effect on the loss deserves.",
        ),
    ] = None
    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            metavar="self|none|FILE",
            show_default=False,
            rich_help_panel=WEIGHTS,
            help="Round 4-bit blocks for a text: one that the model writes itself, or FILE. Minutes. none: for none. "
            "With --bits: measure on that text.",
        ),
    ] = None
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            metavar="cpu|portable|static|cpu+static",
            rich_help_panel=WEIGHTS,
            help="cpu for the native kernels; portable for any ONNX Runtime; static: that, and graphs of fixed sizes "
            "for GPUs and NPUs; cpu+static: both.",
        ),
    ] = "cpu"
    profile_draft: Annotated[
        str | None,
        typer.Option(show_default="as --profile", rich_help_panel=WEIGHTS, help="Of the draft models."),
    ] = None
    static_rows: Annotated[
        str | None,
        typer.Option(
            "--static-rows",
            metavar="N,N",
            show_default="1,4,8,16",
            rich_help_panel=WEIGHTS,
            help="New rows that static graphs take. Each graph in use holds the weights on its device.",
        ),
    ] = None
    static_context: Annotated[
        str | None,
        typer.Option(
            "--static-context",
            metavar="N,N",
            show_default="256, 1024 and so on up to the model's own",
            rich_help_panel=WEIGHTS,
            help="Tokens of the text that static graphs read: a pass costs as much as all of them.",
        ),
    ] = None
    static_type: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|fp16", show_default="fp32", rich_help_panel=WEIGHTS, help="Of static graphs."
        ),
    ] = None
    eval_file: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            metavar="FILE",
            show_default=False,
            rich_help_panel=CHECKS,
            help="Report how the perplexity of this text changes, of its first 16,384 tokens.",
        ),
    ] = None
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="TEXT", show_default="the model's", help="Title of the bundle."),
    ] = None
    licence: Annotated[
        str | None,
        typer.Option("--licence", metavar="TEXT", show_default="the model's", help="Licence of the weights."),
    ] = None

    def order(self, model: str) -> Order:
        """The same for the exporter. Raises ValueError or BadParameter that names the flag, and OSError."""
        if self.calibrate is not None and self.quant != "int4":
            raise ValueError("--calibrate needs --quant int4: other forms lose too little to be worth it")
        if self.calibrate == "none" and self.bits is not None:
            raise ValueError("--bits measures what each matrix matters: leave --calibrate none out")
        calibrated, text = values.calibration(self.calibrate)
        drafters, heads, scale = (
            values.named("--drafter", self.drafter),
            values.named("--head", self.head),
            values.block(self.block),
        )
        self._check_pairs()
        for flag in (*_FINISHED, "predictor"):
            if getattr(self, flag):
                raise ValueError(
                    f"--{flag} is for a bundle that is finished, and there is none at {model}: export without it, then "
                    "give that bundle in place of MODEL"
                )
        evaluated = None if self.eval_file is None else values.text_at("--eval", self.eval_file)
        from paceline.export.order import (
            STATIC_ROWS,
            Order,
        )  # seconds of torch: after what can be refused at once

        return Order(
            source=model,
            revision=self.revision,
            file=self.file,
            drafters=drafters,
            quant=self.quant,
            block=scale,
            bits=self.bits,
            calibrate=calibrated,
            calibration_text=text,
            profile=self.profile,
            profile_draft=self.profile_draft,
            static_rows=values.sizes("--static-rows", self.static_rows or "") or STATIC_ROWS,
            static_contexts=values.sizes("--static-context", self.static_context or ""),
            static_type=self.static_type or "fp32",  # type: ignore[arg-type]
            taps=self.all_taps(),
            name=self.name,
            licence=self.licence,
            eval_text=evaluated,
            heads=heads,
            head_quant=self.head_quant or "int8",
            adapt=self.adapt,
        )

    def heads(self) -> dict[str, str]:
        """Folders of heads by name, for a bundle that is finished.

        Raises ValueError for a flag that would change what is finished, BadParameter for a head without name or folder.
        """
        self._check_finished({"head", "head_quant", "taps"})
        return values.named("--head", self.head)

    def drafters(self, bundle: str) -> Order:
        """The draft models for a bundle that is finished, and how they are stored.

        Raises ValueError for a flag that would change what is finished, BadParameter for one that makes no sense.
        """
        kept = {"drafter", "quant", "block", "bits", "calibrate", "adapt"}
        self._check_finished(kept | {"profile_draft", "static_rows", "static_context", "static_type"})
        return self.order(bundle)

    def skips(self) -> dict[str, SkipWish]:
        """What to leave out by name, for a bundle that is finished.

        Raises ValueError for a flag that would change what is finished or a file that holds nothing, BadParameter for a
        part without name or file, and OSError.
        """
        self._check_finished({"skip", "skip_share", "skip_trials"})
        texts = values.texts_by_name("--skip", self.skip)
        from paceline.export.skips.wish import SHARE, TRIALS, SkipWish

        share = SHARE if self.skip_share is None else self.skip_share
        return {name: SkipWish(text, share, self.skip_trials or TRIALS) for name, text in texts.items()}

    def exits(self) -> dict[str, tuple[int, ...]]:
        """After which layers to leave by name, for a bundle that is finished.

        Raises ValueError for a flag that would change what is finished, or what is no layer, BadParameter for a part
        without name or layer.
        """
        self._check_finished({"exit"})
        return values.layers_by_name("--exit", self.exit)

    def split_wish(self) -> Exit | int:
        """The trained exit behind which to split a bundle that is finished, or the layer.

        Raises ValueError for a flag that would change what is finished, ExportError for a folder that is no exit.
        """
        self._check_finished({"split"})
        return values.exit_or_layer(self.split or "")

    def _check_pairs(self) -> None:
        """Raise ValueError for a flag that says how something is done which was not asked for."""
        if (self.skip_share is not None or self.skip_trials is not None) and not self.skip:
            raise ValueError(
                "--skip-share and --skip-trials are for --skip NAME=FILE, with a finished bundle in place of MODEL: "
                "give both, or leave them out"
            )
        if self.head_quant is not None and not self.head:
            raise ValueError(_NO_HEAD)
        if self.predictor is not None and self.adapt is None:
            raise ValueError(_NO_PAIR)

    def rank(self) -> int:
        """The rank of adapters, for the draft models of a bundle that is finished.

        Raises ValueError for a flag that would change what is finished.
        """
        self._check_finished({"adapt", "predictor"})
        assert self.adapt is not None
        return self.adapt

    def _check_finished(self, kept: set[str]) -> None:
        """Raise ValueError for a flag, besides these, that would change a bundle that is finished.

        One that only says how another flag works asks for that one.
        """
        self._check_pairs()
        if changed := [
            f.name for f in fields(self) if f.name not in kept and getattr(self, f.name) != f.default
        ]:
            flag = {"eval_file": "eval"}.get(changed[0], changed[0].replace("_", "-"))
            if flag in _ADDED:
                raise ValueError(
                    f"--{flag} is added to a finished bundle in an export of its own: leave it out, then give it with "
                    "the bundle that comes of this one"
                )
            raise ValueError(
                f"--{flag} cannot change a bundle that is finished: export the model that it was made from, or leave "
                "it out"
            )

    def all_taps(self) -> tuple[str, ...]:
        """The taps that are asked for, of all flags."""
        return tuple(tap for given in self.taps or [] for tap in given.split(","))
