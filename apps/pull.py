"""`paceline pull`: a model from a hub into the store, ready to be named."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.options import JsonFlag
from paceline.printable import say, say_json
from paceline.terminal import bar_console, fitted, remark

if TYPE_CHECKING:
    from paceline.hub import Reference, Repository
    from paceline.pulling import Tell

_EXPORTER = ("onnx", "onnxscript", "gguf")
"""What makes a bundle of a GGUF file; torch too for some families."""


def pull(
    *,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="OWNER/REPO, OWNER/REPO/FOLDER or either with @REVISION: a repository with a bundle, or a GGUF file.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", show_default="the last part of MODEL", help="What to call it here."
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            metavar="NAME.gguf",
            show_default=False,
            help="The GGUF file of a repository with several.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the model of that name, once the new one is there.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fetch a model from a hub and verify it; -b NAME uses it then, offline too.

    What was broken off goes on where it stopped.
    """
    from paceline.hub import Reference, look_up
    from paceline.listing import as_dict
    from paceline.pulling import growing
    from paceline.store import check_name, models_folder, read_model

    reference = Reference.parse(model)
    called = check_name(name or reference.name)
    place = models_folder() / called
    with growing(called) as work:
        _check_clash(called, place, reference, force)
        repository = look_up(reference)
        if not _up_to_date(repository, file, place, force):
            _bring(repository, file, work, place)
            fresh = True
        else:
            shutil.rmtree(work)  # what a process left that was killed at its very end
            remark(f"{called} is up to date (commit {repository.commit[:12]} of {reference.place})")
            fresh = False
    found = read_model(called, place)
    if as_json:
        say_json(as_dict(found))
    elif fresh:
        from paceline.inspect import size

        say(fitted(f"{called}: {size(found.bytes)} in {place}", sys.stdout, "      "))
        say(f"next: paceline run -b {called} 'Once upon a time'")


def _check_clash(called: str, place: Path, reference: Reference, force: bool) -> None:
    """A name is one source's; pulling that again renews it."""
    from paceline.store import read_source

    if not place.exists() or force:
        return
    source = read_source(place)
    if source is None or (source.repository, source.subfolder) != (reference.repository, reference.subfolder):
        came = "" if source is None else f", from {source.words}"
        raise ValueError(
            f"there is a model {called} already{came}: choose another name with --name, or replace it with --force"
        )


def _up_to_date(repository: Repository, file: str | None, place: Path, force: bool) -> bool:
    from paceline.pulling import kind_of, which_gguf
    from paceline.store import read_source

    source = None if force else read_source(place)
    if source is None or source.commit != repository.commit:
        return False
    wanted = which_gguf(repository, file) if kind_of(repository, file) == "gguf" else None
    if source.file != wanted:
        raise ValueError(
            f"there is a model {place.name} already, from {source.words}: choose another name with --name, or replace "
            "it with --force"
        )
    return True


def _bring(repository: Repository, file: str | None, work: Path, place: Path) -> None:
    """Fetch, make a bundle of it where it is none, and put it in its place."""
    from paceline.export.atomic import place as put
    from paceline.pulling import bundle_within, gguf_within, kind_of, source_of, which_gguf
    from paceline.store import now, write_source

    kind = kind_of(repository, file)
    made_of = which_gguf(repository, file) if kind == "gguf" else None
    lacking = [module for module in _EXPORTER if made_of and find_spec(module) is None]
    if lacking:
        remark(f"{made_of} is no bundle yet: it is fetched, and kept until 'paceline[gguf]' is installed")
    try:
        with _bar(place.name) as tell:
            if made_of is None:
                bundle = bundle_within(repository, work, place, tell)
            else:
                gguf = gguf_within(repository, file, work, tell)
    except KeyboardInterrupt:
        remark(
            f"stopped; what came is kept, and pulling {repository.reference.place} again goes on from there"
        )
        raise
    if made_of is not None:
        bundle = _exported(gguf, work, lacking, place.name)
    write_source(bundle, source_of(repository, made_of, now()))
    put(bundle, place, force=True)
    shutil.rmtree(work)


def _exported(gguf: Path, work: Path, lacking: list[str], called: str) -> Path:
    """The bundle of a GGUF file. Raises PullError without the exporter."""
    from paceline.hub import PullError

    if lacking:
        raise PullError(
            f"{gguf} was fetched and is kept; making a bundle of it needs {', '.join(lacking)}: pip install "
            f"'paceline[gguf]', then pull {called} again"
        )
    from paceline.export_flags import Choices
    from paceline.exporting import make_bundle

    shutil.rmtree(work / "bundle", ignore_errors=True)
    return make_bundle(Choices(), str(gguf), work / "bundle").folder


@contextmanager
def _bar(called: str) -> Iterator[Tell]:
    """A bar on stderr, on a terminal."""
    from rich import progress as bars

    from paceline.hub import told_of_waits

    columns: Any = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    bar = bars.Progress(*columns, console=bar_console())
    task: list[bars.TaskID] = []

    def tell(there: int, total: int) -> None:
        if task:
            bar.update(task[0], completed=there)
        else:  # what an earlier process fetched is no speed of this one
            task.append(bar.add_task(called, total=total, completed=there))

    if not bar.console.is_terminal:
        with told_of_waits(remark):
            yield tell
        return
    with (
        bar,
        told_of_waits(lambda text: bar.console.print(f"paceline: {text}", markup=False, highlight=False)),
    ):
        try:
            yield tell
        except BaseException:
            bar.live.transient = True  # no bar stays above the line that says why
            raise
