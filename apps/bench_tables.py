"""The tables that `paceline bench` prints, and its last line."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from paceline.bench_measure import AUTO, CONTROL, PLAIN
from paceline.bench_report import OVERALL, Row, best_of, fastest, plain_ratio

_DEPTHS = 8
_SHOWN_DIFFERENCES = 5
_NAME = 16
"""Columns of a drafter's name."""


def tables(rows: Sequence[Row]) -> list[str]:
    """Lines: overall, seconds, acceptance by depth, ratios by task group, and what differed."""
    overall = [r for r in rows if r.group == OVERALL]
    groups = list(dict.fromkeys(r.group for r in rows if r.group != OVERALL))
    shown = [*_overall(overall), *_seconds(overall), *_beside(overall)]
    if any(r.tested_by_depth for r in overall):
        shown += _by_depth(overall)
    for row in overall:
        if row.chosen:
            shown += _chosen(row)
    if len(groups) > 1:
        shown += _by_group(rows, groups, [r.contender for r in overall])
    return [*shown, "", *_sameness(overall)]


def verdict(rows: Sequence[Row]) -> str:
    """Who won, and the flag that selects it."""
    best = best_of(rows)
    if best is None:
        near, least = fastest(rows), plain_ratio(rows)
        if near is not None and near.ratio.median > 1:
            return (
                f"best: plain decoding; {near.contender} has {near.ratio.median:.2f}, plain decoding against itself "
                f"({CONTROL}) {least:.2f}, which a drafter has to pass; use --drafter none"
            )
        return "best: plain decoding, no drafter was faster here; use --drafter none"
    return (
        f"best: {best.contender} {best.ratio.median:.2f}x plain decoding; use --drafter {best.contender}"
        + (" (the default)" if best.contender == AUTO else "")
    )


BESIDE = "Drafted beside the model's passes"
BESIDE_HEADS = ("drafter", "hits", "of drafts", "hits, %", "draft passes", "ms a token")


def beside_cells(overall: Sequence[Row]) -> list[tuple[str, ...]]:
    """What came of drafting beside the target's passes, of whom that was done for, in words."""
    cells = list[tuple[str, ...]]()
    for row in overall:
        if found := row.beside:
            looked, hits = found["hits"] + found["misses"], found["hits"]
            share = f"{hits / looked:.0%}" if looked else ""
            ms = row.milliseconds(found["seconds"])
            cells.append(
                (row.contender, f"{hits:.0f}", f"{looked:.0f}", share, f"{found['passes']:.0f}", f"{ms:.3f}")
            )
    return cells


def _beside(overall: Sequence[Row]) -> list[str]:
    cells = beside_cells(overall)
    return table(BESIDE, BESIDE_HEADS, cells) if cells else []


def table(title: str, heads: Sequence[str], cells: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Columns as wide as they need to be; the first `left` are flush left, the others right."""
    rows = [heads, *(line for row in cells for line in _broken(row, left - 1))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return ["", title, lines[0], "─" * len(lines[0]), *(line.rstrip() for line in lines[1:])]


def _broken(row: Sequence[str], at: int) -> list[Sequence[str]]:
    """A row whose name is long goes on below, so that the table fits 80 columns."""
    first, *others = textwrap.wrap(row[at].replace(",", ", "), _NAME) or [""]
    blank = [""] * len(row)
    more = [[*blank[:at], name.replace(", ", ","), *blank[at + 1 :]] for name in others]
    return [[*row[:at], first.replace(", ", ","), *row[at + 1 :]], *more]


def _ratio(row: Row) -> str:
    return "1" if row.contender == PLAIN else str(row.ratio)


OVERALL_HEADS = ("drafter", "tokens/s", "ratio [quartiles]", "tokens/round", "accepted", "same output")


def overall_cells(overall: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table of all prompts, in words."""
    return [
        (
            row.contender,
            f"{row.tokens_per_second:.1f}",
            _ratio(row),
            f"{row.tokens_per_round:.2f}",
            f"{row.acceptance_rate:.0%}" if row.tested_by_depth else "",
            f"no, {len(row.differences)} differ" if row.differences else "yes",
        )
        for row in overall
    ]


def _overall(overall: Sequence[Row]) -> list[str]:
    return table("Overall", OVERALL_HEADS, overall_cells(overall))


def _seconds(overall: Sequence[Row]) -> list[str]:
    parts = {
        "draft": [row.draft_seconds for row in overall],
        "verify": [row.verify_seconds for row in overall],
        "judge": [row.judge_seconds for row in overall],
        "wait": [row.wait_seconds for row in overall],
        "in all": [row.decode_seconds for row in overall],
    }
    shown = {name: column for name, column in parts.items() if name != "wait" or any(column)}
    return table(
        "Prompts read, and milliseconds a token of the answers",
        ("drafter", "prompt tokens/s", *shown),
        [
            (
                row.contender,
                f"{row.prompt_tokens_per_second:.0f}",
                *(f"{row.milliseconds(column[at]):.3f}" for column in shown.values()),
            )
            for at, row in enumerate(overall)
        ],
    )


def _by_depth(overall: Sequence[Row]) -> list[str]:
    drafting = [row for row in overall if row.tested_by_depth]
    deepest = min(_DEPTHS, max(len(r.tested_by_depth) for r in drafting))
    cells = []
    for row in drafting:
        accepted = [*row.accepted_by_depth, *[0] * deepest]
        tested = [*row.tested_by_depth, *[0] * deepest]
        shares = [f"{accepted[d] / tested[d]:.0%}" if tested[d] else "" for d in range(deepest)]
        cells.append((row.contender, *shares))
    return table("Accepted of tested, by depth", ("drafter", *(str(d + 1) for d in range(deepest))), cells)


def _chosen(row: Row) -> list[str]:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in row.chosen.items())
    lines = (f"What {row.contender} chose, by tokens: {shares}", "In the answer asked last:", *row.trace[1:])
    return ["", *(part for line in lines for part in textwrap.wrap(line, 80, subsequent_indent=" " * 6))]


def _by_group(rows: Sequence[Row], groups: Sequence[str], contenders: Sequence[str]) -> list[str]:
    """A line for every group and drafter: a column a drafter would not fit 80 characters."""
    cells = []
    for group in groups:
        for contender in contenders:
            row = next(r for r in rows if r.group == group and r.contender == contender)
            name = f"{group} ({row.prompts})" if contender == contenders[0] else ""
            figures = (f"{row.tokens_per_second:.1f}", _ratio(row), f"{row.tokens_per_round:.2f}")
            cells.append((name, contender, *figures))
    heads = ("group (prompts)", "drafter", "tokens/s", "ratio [quartiles]", "tokens/round")
    return table("By task group", heads, cells, left=2)


def _sameness(overall: Sequence[Row]) -> list[str]:
    lines = []
    for row in overall:
        few = row.differences[:_SHOWN_DIFFERENCES]
        if few:
            shown = ", ".join(f"{d.task} (from token {d.first + 1}, {d.tokens} differ)" for d in few)
            more = len(row.differences) - len(few)
            lines.append(f"{row.contender} differs in {shown}" + (f" and {more} more" if more else ""))
    return lines or ["Every answer is identical to plain decoding's."]
