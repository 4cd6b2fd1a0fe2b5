"""Which contexts and caches fit, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paceline.plan_text import megabytes

if TYPE_CHECKING:
    from paceline.runtime.budget.fitting import Fit, Rung

_LARGEST = "largest that fits"


def fit_lines(fits: Sequence[Fit], budget: int | None, drafting: bool) -> list[str]:
    """A row for each context, a column for each form of cache, 80 columns at most.

    budget: bytes, None where none is given. drafting: whether drafting was asked for.
    """
    rungs = list(zip(*(fit.rungs for fit in fits), strict=True))
    words = {_word(rung, drafting) for row in rungs for rung in row}
    shown = [_row("context", *(fit.cache for fit in fits))]
    if budget is None:
        shown[:0] = ["MB planned for each context and cache:"]
        shown += [_row(str(row[0].context), *map(_size, row)) for row in rungs]
    else:
        shown[:0] = [
            f"MB planned for each context and cache, within {megabytes(budget)} MB with 0.5 to spare:"
        ]
        for row in rungs:
            shown.append(
                _row(str(row[0].context), *(f"{_size(rung)} {_word(rung, drafting)}" for rung in row))
            )
        shown.append(_row(_LARGEST, *(str(fit.largest or "none") for fit in fits)))
        legend = {"plain": "fits without drafting", "no": "needs so much at least"}
        told = [f"{word}: {meaning}" for word, meaning in legend.items() if word in words]
        shown += [f"  {'; '.join(told)}"] * bool(told)
    if guessed := [fit.cache for fit in fits if fit.guessed]:
        shown.append(f"  {', '.join(guessed)}: estimates until a first run with --memory and that cache")
    return shown


def fit_dicts(fits: Sequence[Fit]) -> list[dict[str, Any]]:
    """The same for JSON."""
    return [
        {
            "cache": fit.cache,
            "largest_context": fit.largest,
            "measured_on_this_device": not fit.guessed,
            "contexts": [
                {
                    "context": rung.context,
                    "fits": rung.plan is not None,
                    "planned_bytes": None if rung.plan is None else rung.plan.total,
                    "least_bytes": rung.least,
                    "drafters": [] if rung.plan is None else list(rung.plan.drafters),
                }
                for rung in fit.rungs
            ],
        }
        for fit in fits
    ]


def _size(rung: Rung) -> str:
    return megabytes(rung.least if rung.plan is None else rung.plan.total)


def _word(rung: Rung, drafting: bool) -> str:
    if rung.plan is None:
        return "no"
    return "plain" if drafting and not rung.plan.drafters else "fits"


def _row(head: str, *cells: str) -> str:
    """Numbers end below each other; a word may stand behind them."""
    line = f"  {head:>{len(_LARGEST)}}"
    for cell in cells:
        number, _, word = cell.partition(" ")
        line += f"{number:>11} {word:<6}"
    return line.rstrip()
