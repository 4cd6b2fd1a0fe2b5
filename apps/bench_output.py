"""What becomes of a bench: tables, pictures, the manifest's record."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paceline import trace
from paceline.bench_facts import Facts
from paceline.bench_measure import CONTROL, PLAIN, Measured
from paceline.bench_paste import csv_lines, markdown
from paceline.bench_report import OVERALL, Row, as_dict
from paceline.bench_tables import tables, verdict
from paceline.learning_curve import draw_curves, learning_curves
from paceline.options import JsonFlag
from paceline.plot import FORMATS, draw
from paceline.printable import say, say_json
from paceline.terminal import fitted

if TYPE_CHECKING:
    from paceline.runtime.bundle.bundle import Bundle

Form = Literal["table", "md", "csv", "json"]


@dataclass(frozen=True, slots=True)
class Showing:
    """How the results are shown, and where they are kept."""

    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Also draw the ratios into a .png or .svg; with --adapt on, how drafters learn instead.",
        ),
    ] = None
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE",
            help="Also draw when what ran while each drafter answered the first prompt: .html, .png, .svg, or .json "
            "for chrome://tracing and Perfetto.",
        ),
    ] = None
    record: Annotated[
        bool, typer.Option("--record", help="Write the measured tokens per round into the bundle's manifest.")
    ] = False
    as_json: JsonFlag = False
    form: Annotated[
        Form, typer.Option("--format", help="How to print it: md and csv are for pasting; json is --json.")
    ] = "table"

    @property
    def printed(self) -> Form:
        """In what form."""
        return "json" if self.as_json else self.form

    def flags(self) -> list[str]:
        """Those that were given, but for --json, and mean something where drafters are compared alone."""
        given = {
            "--plot": self.plot is not None,
            "--trace": self.trace is not None,
            "--record": self.record,
            "--format": self.printed in ("md", "csv"),
        }
        return [flag for flag, used in given.items() if used]

    def check(self) -> None:
        """A wrong name or a missing library should not be found out after the measurement. Raises ValueError."""
        for flag, file, formats in (("--plot", self.plot, FORMATS), ("--trace", self.trace, trace.FORMATS)):
            if file is None:
                continue
            if file.suffix not in formats:
                ends = f"{', '.join(formats[:-1])} or {formats[-1]}"
                raise typer.BadParameter(f"{file} must end in {ends}", param_hint=flag)
            if not file.absolute().parent.is_dir():
                raise ValueError(f"{file}: there is no folder {file.absolute().parent}")
            if file.suffix != ".json":
                import matplotlib  # noqa: F401

    def say(self, facts: Facts, measured: Measured, repeats: int, found: list[Row]) -> None:
        """Print the tables."""
        if self.printed == "json":
            say_json(facts.as_dict(measured, repeats) | {"rows": [as_dict(row) for row in found]})
        elif self.printed == "csv":
            say(*csv_lines(found))
        elif self.printed == "md":
            say(*markdown(facts.lines(measured, repeats), found))
        else:
            for line in facts.lines(measured, repeats):
                print(fitted(line, sys.stdout, "  "))
            say(*tables(found))
            print(fitted(verdict(found), sys.stdout, "  "))

    def draw(self, facts: Facts, measured: Measured, learning: Sequence[str], found: list[Row]) -> None:
        """Write the pictures. learning: drafters that learn. Raises OSError as the disk does."""
        title = facts.title(measured)
        if self.plot is not None and learning:
            draw_curves(learning_curves(measured, learning), title, self.plot)
        elif self.plot is not None:
            draw(found, title, self.plot)
        if self.trace is not None:
            traces = {run.contender: run.timeline for run in measured.runs if run.timeline is not None}
            trace.save(traces, facts.title(measured, first=True), self.trace)


def record(bundle: Bundle, found: list[Row]) -> None:
    """Write tokens per round into the manifest, which does not list itself among its files."""
    import msgspec

    from paceline.runtime.manifest import write_manifest

    measured = {
        r.contender: round(r.tokens_per_round, 3)
        for r in found
        if r.group == OVERALL and r.contender not in (PLAIN, CONTROL) and r.tokens_per_round >= 1
    }
    write_manifest(
        msgspec.structs.replace(bundle.manifest, acceptance={**bundle.manifest.acceptance, **measured}),
        bundle.folder,
    )
