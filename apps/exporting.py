"""`paceline export`: a Hugging Face decoder becomes a bundle."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.export_flags import Choices
from paceline.export_report import as_dict, lines
from paceline.flags import with_flags
from paceline.options import JsonFlag
from paceline.printable import say, say_json
from paceline.terminal import bar_console, fitted

if TYPE_CHECKING:
    from paceline.export.report import Progress, Report


@with_flags
def export(
    *,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="Folder of a Hugging Face model, GGUF file, or hub id; a bundle, too, with --drafter, --head, --skip, "
            "--exit, --split, --taps or --adapt.",
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
    elif choices.split is not None and _is_bundle(Path(model)):
        report = _add_split(choices, Path(model), out, force, quiet)
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


def _add_split(choices: Choices, bundle: Path, out: Path, force: bool, quiet: bool) -> Report:
    wish = choices.split_wish()
    from paceline.export.skips.halving import add_split

    with _progress(quiet) as (show, _):
        return add_split(bundle, wish, out, force=force, progress=show)


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
