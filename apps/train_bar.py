"""The progress bar of a training: loss and held-out bits per byte."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from paceline.terminal import bar_console

if TYPE_CHECKING:
    from paceline.export.training.lm import Progress


@contextmanager
def training_bar() -> Iterator[tuple[Callable[[str], None], Callable[[Progress], None]]]:
    """Two functions, on stderr: one names the stage, the other shows how far the training is.

    Without a terminal there is no bar: a line for every stage, and one for every measured loss.
    """
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=None),
        bars.TaskProgressColumn(),
        bars.TimeElapsedColumn(),
    )
    bar = bars.Progress(*columns, console=bar_console())
    drawn = bar.console.is_terminal
    with bar if drawn else nullcontext():
        task = bar.add_task("", total=1.0)
        held_out = said = ""

        def say(stage: str) -> None:
            nonlocal said
            bar.update(task, description=stage, refresh=drawn)
            name = stage.rstrip("0123456789% ")
            if not drawn and name != said:
                print(name, file=sys.stderr, flush=True)
            said = name

        def report(progress: Progress) -> None:
            nonlocal held_out
            if progress.held_out is not None:
                held_out = f", held out {progress.held_out:.3f} bits/byte"
                bar.console.print(f"step {progress.step}: loss {progress.loss:.3f}{held_out}")
            bar.update(
                task,
                completed=progress.done,
                description=f"step {progress.step}, loss {progress.loss:.3f}{held_out}",
            )
            if progress.ended is not None:
                bar.console.print(f"the limit of --{progress.ended} is reached")

        try:
            yield say, report
        except BaseException:
            bar.live.transient = True  # no bar stays above the line that says why
            raise
