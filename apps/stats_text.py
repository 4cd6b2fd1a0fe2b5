"""Statistics as lines of text. The definitions stand in docs/statistics.md."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.runtime.stats import Statistics

_SECONDS = ("load", "prefill", "draft", "verify", "judge", "total")

SLID = "the context of {context} tokens is full: its oldest part is left out from here on"
"""Said once, where --overflow slide dropped text."""


def statistics_lines(stats: Statistics) -> list[str]:
    """A few lines that fit 80 columns."""
    seed = "" if stats.seed is None else f", seed {stats.seed}"
    reused = f" ({stats.reused_tokens} reused)" if stats.reused_tokens else ""
    lines = [
        f"{stats.generated_tokens} tokens at {stats.decode_tokens_per_second:.1f} tokens/s after a prompt of "
        f"{stats.prompt_tokens}{reused}{seed}",
        f"drafter {stats.drafter}: {stats.tokens_per_round:.2f} tokens per round, {stats.rounds} rounds",
    ]
    if stats.tested:
        lines.append(
            f"drafted {stats.drafted}, tested {stats.tested}, accepted {stats.accepted} "
            f"({stats.acceptance_rate:.0%} of tested)"
        )
        lines.append("accepted by depth: " + _by_depth(stats))
    if len(stats.accepted_by_source) > 1:
        lines.append(
            "accepted by source: " + ", ".join(f"{k} {v}" for k, v in stats.accepted_by_source.items())
        )
    spent = ((name, stats.seconds.get(name, 0.0)) for name in _SECONDS)
    lines.append("ms: " + ", ".join(f"{name} {_milliseconds(seconds)}" for name, seconds in spent))
    if stats.control is not None:
        lines += stats.control.lines()
    if stats.devices:
        lines.append("devices: " + ", ".join(f"{part} on {where}" for part, where in stats.devices.items()))
    if peak := stats.as_dict().get("peak_rss_bytes"):
        planned = f", planned {stats.planned_bytes / 1e6:.0f} MB" if stats.planned_bytes else ""
        lines.append(f"peak memory {peak / 1e6:.0f} MB{planned}, cache in {stats.cache}")
    return [part for line in lines for part in textwrap.wrap(line, 80, subsequent_indent=" " * 6)]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.{0 if seconds >= 0.01 else 1}f}"


def _by_depth(stats: Statistics) -> str:
    shown = [
        f"{depth}: {accepted / tested:.0%}"
        for depth, (accepted, tested) in enumerate(
            zip(
                [*stats.accepted_by_depth, *[0] * len(stats.tested_by_depth)],
                stats.tested_by_depth,
                strict=False,
            ),
            1,
        )
        if tested
    ][:10]
    return "  ".join(shown)
