"""What a bench found in forms to paste: Markdown, and CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from paceline.bench_report import OVERALL, Row
from paceline.bench_tables import BESIDE, BESIDE_HEADS, OVERALL_HEADS, beside_cells, overall_cells, verdict


def markdown(facts: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The table of all prompts with what must be told with it, and what was drafted beside the target's passes."""
    overall = [row for row in rows if row.group == OVERALL]
    heads = [*OVERALL_HEADS, "prompt tokens/s"]
    cells = [
        (*cell, f"{row.prompt_tokens_per_second:.0f}")
        for cell, row in zip(overall_cells(overall), overall, strict=True)
    ]
    shown = [*(f"{_escaped(fact)}<br>" for fact in facts), "", *_table(heads, cells)]
    if beside := beside_cells(overall):
        waits = {row.contender: f"{row.milliseconds(row.wait_seconds):.3f}" for row in overall}
        rated = [(*cell, waits[cell[0]]) for cell in beside]
        shown += ["", f"{BESIDE}:", "", *_table([*BESIDE_HEADS, "ms waited a token"], rated)]
    return [*shown, "", verdict(rows)]


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *cells]
    return [f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines]


def csv_lines(rows: Sequence[Row]) -> list[str]:
    """Every group and drafter, a row each, figures unrounded; empty is what was not drafted beside the target."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        ratio = row.ratio
        figures = (row.tokens_per_second, ratio.median, ratio.low, ratio.high, row.tokens_per_round)
        more = (row.acceptance_rate, row.prompt_tokens_per_second, not row.differences)
        beside = (row.beside.get(name, "") for name in _BESIDE)
        waited = row.wait_seconds if row.beside else ""
        writer.writerow((row.group, row.contender, row.prompts, row.tokens, *figures, *more, waited, *beside))
    return out.getvalue().splitlines()


_BESIDE = ("hits", "misses", "foreseen", "hit_seconds", "miss_seconds", "passes", "seconds")
"""Of `Row.beside`, sums over the answers."""
_COLUMNS = (
    "group", "drafter", "prompts", "tokens", "tokens_per_second", "ratio_median", "ratio_low", "ratio_high",
    "tokens_per_round", "acceptance_rate", "prompt_tokens_per_second", "identical", "wait_seconds",
    *(f"beside_{name}" for name in _BESIDE),
)  # fmt: skip


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
