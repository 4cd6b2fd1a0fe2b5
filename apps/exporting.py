"""`paceline export`: a Hugging Face decoder becomes a bundle."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.export_flags import Choices
from paceline.flags import with_flags
from paceline.options import JsonFlag
from paceline.printable import say, say_json
from paceline.terminal import bar_console, fitted

if TYPE_CHECKING:
    from paceline.export.recipe import Recipe
    from paceline.export.report import ExitReport, HeadReport, PartReport, Progress, Report, SkipReport
    from paceline.runtime.manifest import Part


@with_flags
def export(
    *,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="Folder of a Hugging Face model, GGUF file, or hub id; a bundle, too, with --drafter, --head, --skip, "
            "--exit, --taps or --adapt.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", show_default=False, help="Folder of the bundle.")],
    choices: Choices,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the bundle at OUT, once the new one is done.")
    ] = False,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")] = False,
) -> None:
    """Make a bundle OUT of the decoder MODEL, compared with the model in torch (or numpy) before it appears."""
    if not model:
        raise typer.BadParameter("an empty text is no model: name one", param_hint="MODEL")
    _refuse_inside_bundle(out)
    report = make_bundle(choices, model, out, force, quiet)
    if as_json:
        say_json(as_dict(report))
    elif not quiet:
        say(*(fitted(line, sys.stdout, "      ") for line in lines(report)))


def make_bundle(choices: Choices, model: str, out: Path, force: bool = False, quiet: bool = False) -> Report:
    """Export, or add draft models, or heads and taps, to a bundle, with bars and notes on stderr.

    Raises as `export_bundle`, `add_drafters` and `add_heads` do.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if choices.skip and _is_bundle(Path(model)):
        report = _add_skips(choices, Path(model), out, force, quiet)
    elif choices.exit and _is_bundle(Path(model)):
        report = _add_exits(choices, Path(model), out, force, quiet)
    elif choices.drafter and _is_bundle(Path(model)):
        report = _add_drafters(choices, model, out, force, quiet)
    elif choices.adapt is not None and _is_bundle(Path(model)):
        report = _adapt(choices, Path(model), out, force, quiet)
    elif (choices.head or choices.taps) and _is_bundle(Path(model)):
        report = _add_to_bundle(choices, Path(model), out, force, quiet)
    elif find_spec("torch") is None and not _means_gguf(model, choices.file):
        raise ModuleNotFoundError("only GGUF files are exported without it", name="torch")
    elif find_spec("torch") is None and choices.adapt is not None:
        raise ModuleNotFoundError("adapters are made with it", name="torch")
    else:
        with _progress(quiet) as (show, warn), redirect_stdout(sys.stderr):  # libraries print there
            order = choices.order(model)
            report = _exporter()(order, out, force=force, progress=show, warn=warn)
    for note in report.notes:
        say(f"paceline: note: {' '.join(note.split())}", to=sys.stderr)
    return report


def _is_bundle(folder: Path) -> bool:
    from paceline.runtime.manifest import MANIFEST

    return (folder / MANIFEST).is_file()


def _add_drafters(choices: Choices, bundle: str, out: Path, force: bool, quiet: bool) -> Report:
    order = choices.drafters(bundle)
    from paceline.export.adding_drafters import add_drafters

    with _progress(quiet) as (show, warn), redirect_stdout(sys.stderr):  # libraries print there
        return add_drafters(Path(bundle), order, out, force=force, progress=show, warn=warn)


def _add_to_bundle(choices: Choices, bundle: Path, out: Path, force: bool, quiet: bool) -> Report:
    heads, taps = choices.heads(), choices.all_taps()
    from paceline.export.heads.adding import add_heads

    with _progress(quiet) as (show, _):
        return add_heads(
            bundle, heads, out, choices.head_quant or "int8", taps=taps, force=force, progress=show
        )


def _add_exits(choices: Choices, bundle: Path, out: Path, force: bool, quiet: bool) -> Report:
    exits = choices.exits()
    from paceline.export.skips.leaving import add_exits

    with _progress(quiet) as (show, _):
        return add_exits(bundle, exits, out, force=force, progress=show)


def _add_skips(choices: Choices, bundle: Path, out: Path, force: bool, quiet: bool) -> Report:
    skips = choices.skips()
    from paceline.export.skips.adding import add_skips
    from paceline.runtime.model.processors import default_threads

    with _progress(quiet) as (show, _):
        return add_skips(bundle, skips, out, threads=default_threads(), force=force, progress=show)


def _adapt(choices: Choices, bundle: Path, out: Path, force: bool, quiet: bool) -> Report:
    rank = choices.rank()
    from paceline.export.adaptation.adding import adapt_bundle

    with _progress(quiet) as (show, _), redirect_stdout(sys.stderr):  # libraries print there
        return adapt_bundle(bundle, rank, out, predictor=choices.predictor, force=force, progress=show)


def _means_gguf(model: str, file: str | None) -> bool:
    """Whether a GGUF file is meant, by names alone."""
    return file is not None or model.lower().endswith(".gguf") or any(Path(model).glob("*.gguf"))


def _exporter() -> Callable[..., Report]:
    """The exporter by torch where that is installed, else the one that knows GGUF files of some families."""
    if find_spec("torch") is None:
        from paceline.export.plain.pipeline import export_plain

        return export_plain
    from paceline.export.pipeline import export_bundle

    return export_bundle


def _refuse_inside_bundle(out: Path) -> None:
    from paceline.runtime.manifest import MANIFEST

    for folder in out.absolute().parents:
        if (folder / MANIFEST).is_file() and (folder / "target").is_dir():
            raise ValueError(f"{out} is inside the bundle {folder}: name a folder outside it")


@contextmanager
def _progress(quiet: bool) -> Iterator[tuple[Progress | None, Callable[[str], None] | None]]:
    """One bar a part on stderr and warnings above them, or nothing."""
    if quiet:
        yield None, None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<20}"), BarColumn(), TextColumn("{task.fields[stage]:<12}"))
    bars = Progress(*columns, TimeElapsedColumn(), console=bar_console())
    tasks: dict[str, Any] = {}
    waiting = None
    if bars.console.is_terminal:  # elsewhere a display without bars would leave an empty line
        waiting = bars.add_task("paceline", total=None, stage="begin")
        bars.start()

    def show(part: str, stage: str, share: float) -> None:
        from paceline.export.report import STAGES

        if waiting is not None:
            bars.update(waiting, visible=False)
        if part not in tasks:
            tasks[part] = bars.add_task(part, total=len(STAGES), stage=stage)
        done = STAGES.index(stage) + share
        bars.update(tasks[part], completed=done, stage="done" if done >= len(STAGES) else stage)

    try:
        yield show, lambda text: bars.console.print(f"paceline: note: {text}", markup=False, highlight=False)
    except BaseException as error:
        bars.live.transient = True  # no bar stays above the line that says why
        if waiting is not None:
            bars.stop()
        if isinstance(error, KeyboardInterrupt):
            say("paceline: stopped, nothing was written", to=sys.stderr)
        raise
    bars.start()
    bars.stop()


def as_dict(report: Report) -> dict[str, Any]:
    """The object of `export --json`."""
    from paceline.memory.budget import peak_memory

    return {
        "folder": str(report.folder),
        "name": report.manifest.name,
        "licence": report.manifest.licence,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 3),
        "notes": list(report.notes),
        "peak_rss_bytes": peak_memory(),
        "parts": {name: _part_dict(made) for name, made in report.parts.items()},
        "heads": {name: _head_dict(made) for name, made in report.heads.items()},
        "skips": {name: _skip_dict(made) for name, made in report.skips.items()},
        "exits": {name: _exit_dict(made) for name, made in report.exits.items()},
    }


def _part_dict(made: PartReport) -> dict[str, Any]:
    part, agreement = made.part, made.agreement
    found: dict[str, Any] = {
        "architecture": part.architecture,
        "parameters": part.parameters,
        "quant": part.quant,
        "block": part.block,
        "bytes": made.bytes,
        "nodes_per_layer": part.nodes_per_layer,
        "max_logit_error": agreement.largest,
        "relative_logit_error": agreement.relative,
        "spread": agreement.spread,
        "top1_agreement": agreement.top1,
        "rows_checked": agreement.rows,
        "matrix_error": made.matrix_error,
        "calibrated": made.calibrated,
        "bits": None if made.recipe is None else round(made.recipe.bits, 3),
        "seconds": {stage: round(took, 3) for stage, took in made.seconds.items()},
    }
    if made.loss is not None:
        loss = made.loss
        found["perplexity"] = {"torch": loss.before, "bundle": loss.after, "tokens": loss.tokens}
    return found


def _head_dict(made: HeadReport) -> dict[str, Any]:
    part, agreement = made.part, made.agreement
    return {
        "method": part.method,
        "parameters": part.parameters,
        "quant": part.quant,
        "bytes": made.bytes,
        "vocabulary": part.vocab,
        "reads": part.reads,
        "depths": sorted(part.drafts),
        "max_logit_error": agreement.largest,
        "relative_logit_error": agreement.relative,
        "rows_checked": agreement.rows,
        "matrix_error": made.matrix_error,
        "kept": [round(share, 4) for share in made.kept],
        "acceptance": part.accepted,
        "seconds": {stage: round(took, 3) for stage, took in made.seconds.items()},
    }


def _skip_dict(made: SkipReport) -> dict[str, Any]:
    return {
        "without": made.part.without,
        "share": round(made.share, 4),
        "bytes": made.bytes,
        "agreement": round(made.agreement, 4),
        "acceptance": made.part.accepted,
        "round_tokens": round(made.round_tokens, 4),
        "pass": round(made.price, 4),
        "row": round(made.row, 4),
        "depth": made.depth,
        "gain": round(made.gain, 4),
        "seconds": {stage: round(took, 3) for stage, took in made.seconds.items()},
    }


def _exit_dict(made: ExitReport) -> dict[str, Any]:
    return {
        "layers": sorted(made.part.exits),
        "bytes": made.bytes,
        "right": {str(layer): round(share, 4) for layer, share in made.right.items()},
        "pass": {str(layer): cost for layer, cost in made.part.costs.items()},
        "seconds": {stage: round(took, 3) for stage, took in made.seconds.items()},
    }


def lines(report: Report) -> list[str]:
    """The same as text."""
    from paceline.memory.budget import peak_memory

    shown = [f"{report.manifest.name}: {report.bytes / 1e6:,.1f} MB in {report.folder}"]
    for name, made in report.parts.items():
        shown.extend(_part_lines(name, made))
    if report.manifest.target.taps:
        shown.append(f"  target: gives {', '.join(report.manifest.target.taps)}")
    for name, part in {"target": report.manifest.target, **report.manifest.drafters}.items():
        if part.training is not None:
            when = "" if part.predictor is None else ", and when a draft ends"
            size = f"{part.adapter_bytes / 1e6:,.1f} MB"
            shown.append(f"  {name}: learns with --adapt on, adapters of {size}{when}")
    for name, head in report.heads.items():
        shown.extend(_head_lines(name, head))
    for name, skip in report.skips.items():
        shown.extend(_skip_lines(name, skip))
    for name, exits in report.exits.items():
        shown.extend(_exit_lines(name, exits))
    peak = peak_memory()
    memory = "" if peak is None else f", peak memory {peak / 1e6:,.0f} MB"
    shown.append(f"took {report.seconds:.1f} s{memory}")
    shown.append(f"next: paceline run -b {report.folder} 'Once upon a time'")
    return shown


def _rounded(part: Part, recipe: Recipe | None) -> str:
    if recipe is not None:
        return f"{recipe.bits:.2f} bits a weight ({recipe.told()})"
    return (
        f"{part.quant}, one scale a column"
        if part.block is None
        else f"{part.quant} in blocks of {part.block}"
    )


def _part_lines(name: str, made: PartReport) -> list[str]:
    part, agreement = made.part, made.agreement
    kept = {"none": "weights as they came", "keep": "weights in the blocks of the GGUF file"}
    weights = kept.get(part.quant) or _rounded(part, made.recipe)
    shown = [
        f"  {name}: {part.architecture}, {part.parameters / 1e6:,.1f} M parameters, {part.layers} layers, "
        f"{weights}, {made.bytes / 1e6:,.1f} MB, {part.nodes_per_layer:g} nodes a layer",
        f"    its graph against {made.reference} with the same weights, {agreement.rows} rows: largest logit error "
        f"{agreement.largest:.2g} ({agreement.relative:.1g} of the largest logit)",
    ]
    if made.matrix_error:
        how = "calibrated rounding" if made.calibrated else "rounding"
        shown.append(f"    worst matrix: {made.matrix_error:.1%} relative error after {how}")
    if made.loss is not None:
        shown.append(f"    {made.loss.told()}")
    return shown


def _head_lines(name: str, made: HeadReport) -> list[str]:
    part, agreement = made.part, made.agreement
    weights = "weights as they came" if part.quant == "none" else f"{part.quant} in blocks of {part.block}"
    layers = ", ".join(map(str, part.exits))
    drafts = (
        f"drafts up to {max(part.drafts)}" if part.drafts else f"drafts with the model up to layer {layers}"
    )
    shown = [
        f"  {name}: {part.method} head, {part.parameters / 1e6:,.1f} M parameters, reads {', '.join(part.reads)}, "
        f"knows {part.vocab:,} tokens, {drafts}, {weights}, {made.bytes / 1e6:,.1f} MB",
        f"    its graphs against numpy with the same weights, {agreement.rows} rows: largest error "
        f"{agreement.largest:.2g} ({agreement.relative:.1g} of the largest logit)",
        f"    chooses as the trained head does: {_shares(made.kept)} of drafts, by depth",
    ]
    if part.accepted:
        shown.append(f"    accepted in training: {_shares(part.accepted)}, by depth")
    return shown


def _skip_lines(name: str, made: SkipReport) -> list[str]:
    blocks = len(made.part.without)
    shown = [
        f"  {name}: the model without {blocks} of its blocks, {made.share:.0%} of their weights; "
        f"{made.bytes / 1e6:,.1f} MB, no weights of its own",
        f"    chooses as the whole model: {made.agreement:.0%} of the tokens that the search saw",
        f"    accepted on others: {_shares(made.part.accepted)}, by depth; {made.round_tokens:.2f} tokens a round with "
        "chains of 4",
        f"    a draft pass takes {made.price:.2f} of a pass here, one more row to verify {made.row:.2f}",
    ]
    if made.depth:
        return [*shown, f"    predicted: {made.gain:.2f} times plain decoding, with chains of {made.depth}"]
    return [*shown, "    predicted: never faster than plain decoding here, so auto will not use it"]


def _exit_lines(name: str, made: ExitReport) -> list[str]:
    *fewer, last = map(str, made.part.exits)
    layers, by = (
        (f"one of the layers {', '.join(fewer)} and {last}", ", by layer") if fewer else (f"layer {last}", "")
    )
    part = made.part
    return [
        f"  {name}: the model left after {layers}; {made.bytes / 1e6:,.1f} MB, no weights of its own",
        f"    chooses as the whole model: {_shares([*made.right.values()])} of a sample text{by}",
        f"    a draft pass reads {_shares([*part.costs.values()])} of what a pass reads",
    ]


def _shares(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)
