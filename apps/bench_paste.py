"""What a bench found in forms to paste: Markdown, and CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from paceline.bench_report import OVERALL, Row
from paceline.bench_tables import OVERALL_HEADS, overall_cells, verdict


def markdown(facts: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The table of all prompts with what must be told with it."""
    overall = [row for row in rows if row.group == OVERALL]
    heads = [*OVERALL_HEADS, "prompt tokens/s"]
    cells = [
        (*cell, f"{row.prompt_tokens_per_second:.0f}")
        for cell, row in zip(overall_cells(overall), overall, strict=True)
    ]
    table = [heads, ["---", *("---:" for _ in heads[1:])], *cells]
    return [
        *(f"{_escaped(fact)}<br>" for fact in facts),
        "",
        *(f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in table),
        "",
        verdict(rows),
    ]


def csv_lines(rows: Sequence[Row]) -> list[str]:
    """Every group and drafter, a row each, figures unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        ratio = row.ratio
        figures = (row.tokens_per_second, ratio.median, ratio.low, ratio.high, row.tokens_per_round)
        more = (row.acceptance_rate, row.prompt_tokens_per_second, not row.differences)
        writer.writerow((row.group, row.contender, row.prompts, row.tokens, *figures, *more))
    return out.getvalue().splitlines()


_COLUMNS = (
    "group", "drafter", "prompts", "tokens", "tokens_per_second", "ratio_median", "ratio_low", "ratio_high",
    "tokens_per_round", "acceptance_rate", "prompt_tokens_per_second", "identical",
)  # fmt: skip


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
