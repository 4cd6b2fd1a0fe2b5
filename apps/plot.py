"""Draws what a bench found: ratio to plain decoding by task group and drafter, with its spread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paceline.bench_measure import PLAIN
from paceline.bench_report import Row

FORMATS = (".png", ".svg")


def draw(rows: Sequence[Row], title: str, file: Path) -> None:
    """Write a .png or .svg: one mark a drafter and group, quartiles as whiskers, plain decoding at 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(r.group for r in rows))
    contenders = [c for c in dict.fromkeys(r.contender for r in rows) if c != PLAIN]
    figure, axes = pyplot.subplots(figsize=(max(6.0, 1.1 * len(groups) + 3.0), 4.2), layout="constrained")
    width = 0.8 / len(contenders)
    for number, contender in enumerate(contenders):
        own = {r.group: r for r in rows if r.contender == contender}
        at = [i + (number - (len(contenders) - 1) / 2) * width for i in range(len(groups))]
        middle = [own[g].ratio.median for g in groups]
        below = [own[g].ratio.median - own[g].ratio.low for g in groups]
        above = [own[g].ratio.high - own[g].ratio.median for g in groups]
        axes.errorbar(
            at, middle, yerr=[below, above], fmt="o", markersize=5, capsize=2, linewidth=1.2, label=contender
        )
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(groups)), groups, rotation=20 if len(groups) > 4 else 0)
    axes.set_ylabel("tokens/s over plain decoding's\n(median and quartiles of the prompts)")
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=9)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
