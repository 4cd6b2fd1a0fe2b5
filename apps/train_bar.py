"""The progress bar of a training: loss and held-out bits per byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.export.training.lm import Progress


@contextmanager
def training_bar() -> Iterator[tuple[Callable[[str], None], Callable[[Progress], None]]]:
    """Two functions, on stderr: one names the stage, the other shows how far the training is."""
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=None),
        bars.TaskProgressColumn(),
        bars.TimeElapsedColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=1.0)
        held_out = ""

        def say(stage: str) -> None:
            bar.update(task, description=stage)

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

        yield say, report
