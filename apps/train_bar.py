"""The progress bar of a training: how far it is, and what was measured on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

from paceline.terminal import bar_console

if TYPE_CHECKING:
    from paceline.export.training import lm, loop

Show = Callable[["Shown"], None]


class Shown(NamedTuple):
    """How far a training is: its share, what the bar says of it, and a line that stays, where there is one."""

    done: float
    words: str
    line: str | None = None
    ended: str | None = None


@contextmanager
def training_bar() -> Iterator[tuple[Callable[[str], None], Show]]:
    """Two functions, on stderr: one names the stage, the other shows how far the training is.

    Without a terminal there is no bar: a line for every stage, and those that stay.
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
        said = ""

        def say(stage: str) -> None:
            nonlocal said
            bar.update(task, description=stage, refresh=drawn)
            name = stage.rstrip("0123456789% ")
            if not drawn and name != said:
                print(name, file=sys.stderr, flush=True)
            said = name

        def show(shown: Shown) -> None:
            if shown.line is not None:
                bar.console.print(shown.line)
            bar.update(task, completed=shown.done, description=shown.words)
            if shown.ended is not None:
                bar.console.print(f"the limit of --{shown.ended} is reached")

        try:
            yield say, show
        except BaseException:
            bar.live.transient = True  # no bar stays above the line that says why
            raise


def of_lm(show: Show) -> Callable[[lm.Progress], None]:
    """Shows the training of a language model: its loss and its held-out bits per byte."""
    held_out = ""

    def report(progress: lm.Progress) -> None:
        nonlocal held_out
        line = None
        if progress.held_out is not None:
            held_out = f", held out {progress.held_out:.3f} bits/byte"
            line = f"step {progress.step}: loss {progress.loss:.3f}{held_out}"
        words = f"step {progress.step}, loss {progress.loss:.3f}{held_out}"
        show(Shown(progress.done, words, line, progress.ended))

    return report


def of_exit(show: Show) -> Callable[[loop.Progress], None]:
    """Shows the training of exits: their loss, and by layer how often they name the target's choice first."""
    told = 0

    def report(progress: loop.Progress) -> None:
        nonlocal told
        line = None
        if progress.measured is not None and told != progress.step:
            told = progress.step
            layers = " ".join(f"{share:.0%}" for share in progress.measured.accepted)
            line = f"step {progress.step}: loss {progress.loss:.3f}, right by layer {layers}"
        speed = f", {progress.tokens_per_second:.0f} tokens/s" if progress.tokens_per_second else ""
        words = f"step {progress.step}, loss {progress.loss:.3f}{speed}"
        show(Shown(progress.done, words, line, progress.ended))

    return report


def of_head(show: Show) -> Callable[[loop.Progress], None]:
    """Shows the training of a draft head: its loss, and tokens a round on held-out answers."""
    worth, told = "", 0

    def report(progress: loop.Progress) -> None:
        nonlocal worth, told
        line = None
        if progress.measured is not None:
            worth = f", {progress.measured.round_tokens:.2f} tokens a round"
            levels = " ".join(f"{share:.0%}" for share in progress.measured.accepted[:4])
            if told != progress.step:  # the last step may be one that was measured on the way
                line = f"step {progress.step}: loss {progress.loss:.3f}{worth}, right by level {levels}"
            told = progress.step
        if progress.failed:
            warning = "warning: it is no better than at its first step: train into another folder with a lower --rate"
            line = f"{line}\n{warning}" if line else warning
        speed = f", {progress.tokens_per_second:.0f} tokens/s" if progress.tokens_per_second else ""
        words = f"step {progress.step}, loss {progress.loss:.3f}{worth}{speed}"
        show(Shown(progress.done, words, line, progress.ended))

    return report
