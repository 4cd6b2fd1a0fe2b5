"""Draws what a bench found: ratio to plain decoding by task group and drafter, with its spread."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.bench_measure import PLAIN
from paceline.bench_report import OVERALL, Row
from paceline.runtime.bundle.whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")


def draw(rows: Sequence[Row], title: str, file: Path) -> None:
    """Write a .png or .svg: a point a drafter and group, quartiles as whiskers, plain decoding at 1."""
    groups = list(dict.fromkeys(r.group for r in rows))
    if len(groups) == 2:  # one group, and over all prompts the same once more
        groups = [g for g in groups if g != OVERALL]
    contenders = [c for c in dict.fromkeys(r.contender for r in rows) if c != PLAIN]
    wide = max(6.4, 0.55 * len(groups) * len(contenders) + 2.6)
    figure, [axes] = canvas(wide, 4.4)
    step = 0.84 / len(contenders)
    low, high = 1.0, 1.0
    for number, contender in enumerate(contenders):
        own = [next(r.ratio for r in rows if (r.group, r.contender) == (g, contender)) for g in groups]
        at = [i + (number - (len(contenders) - 1) / 2) * step for i in range(len(groups))]
        middle = [ratio.median for ratio in own]
        whiskers = [[r.median - r.low for r in own], [r.high - r.median for r in own]]
        colour = f"C{number}"
        axes.errorbar(at, middle, yerr=whiskers, fmt="none", ecolor=colour, capsize=2, linewidth=1.2)
        axes.plot(at, middle, "o", markersize=5, color=colour, label=contender)
        for x, ratio in zip(at, own, strict=True):
            axes.annotate(
                f"{ratio.median:.2f}", (x, ratio.high), (0, 4), textcoords="offset points",
                ha="center", fontsize=7, color=colour,
            )  # fmt: skip
        low, high = min(low, *(r.low for r in own)), max(high, *(r.high for r in own))
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(groups)), groups, rotation=20 if len(groups) > 4 else 0)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylabel("times plain decoding's tokens/s\n(median and quartiles of the prompts)")
    room = max(0.12 * (high - low), 0.05)
    axes.set_ylim(max(low - room, 0.0), high + 1.5 * room)
    figure.legend(loc="outside right center", frameon=False)
    write(figure, title, file)


def canvas(wide: float, high: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, with panels below each other that share their x axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        rows, figsize=(wide, high), layout="constrained", sharex=True, squeeze=False
    )
    for axes in panels[:, 0]:
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(panels[:, 0])


def write(figure: Figure, title: str, file: Path) -> None:
    """Write it whole under a title, and forget it. Raises OSError as the disk does."""
    from matplotlib import pyplot

    wide = figure.get_figwidth()
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, int(13 * wide))]
    figure.suptitle("\n".join(lines), fontsize=9, x=0.01, ha="left")
    with whole_file(file, private=False) as whole:
        figure.savefig(whole, dpi=150, format=file.suffix.removeprefix("."))
    pyplot.close(figure)
