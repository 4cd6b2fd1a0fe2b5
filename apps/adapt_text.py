"""What draft models have learnt, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.runtime.adaptation.learner import Learned

_NOBODY = (
    "no draft model learns here: start with --adapt on, a drafter with a model, and a bundle whose draft models can "
    "learn (paceline export BUNDLE OUT --adapt 8)"
)


def learned_lines(learned: Sequence[Learned]) -> list[str]:
    """A few lines for each draft model."""
    return [line for each in learned for line in _lines(each)] or [_NOBODY]


def _lines(learned: Learned) -> list[str]:
    loss = "" if learned.loss is None else f", loss {learned.loss:.3f}"
    more = ", more to learn" if learned.waiting else ""
    lines = [
        f"{learned.name}: {learned.steps} steps in {learned.seconds:.1f} s{loss}{more}",
        f"  accepted: {_share(learned.before)} before, {_share(learned.after)} in the last answers since",
    ]
    if learned.file is None:
        lines.append("  kept nowhere: this user has no cache folder")
    elif learned.bytes is None:
        lines.append(
            f"  {learned.adapter_bytes / 1e3:,.0f} kB of adapters, kept when the session ends in {learned.file}"
        )
    else:
        lines.append(
            f"  {learned.adapter_bytes / 1e3:,.0f} kB of adapters, {learned.bytes / 1e3:,.0f} kB in {learned.file}"
        )
    return [*lines, *([] if learned.fault is None else [f"  {learned.fault}"])]


def _share(rate: float | None) -> str:
    return "nothing" if rate is None else f"{rate:.1%}"
