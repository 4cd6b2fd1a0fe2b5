"""What a drafter costs and brings before anything is learnt of it."""

from __future__ import annotations

from collections.abc import Callable

from paceline.memory.model import FRONTIER
from paceline.runtime.control.estimates import Arm, CostCurve
from paceline.runtime.drafters.names import Name
from paceline.runtime.part import AT_ONCE

_HEAD_LEVEL, _MODEL_PASS, _OWN_PASS = 0.05, 0.3, 0.6
"""Expected tokens that a level must bring where the clock may not choose: one of a head is far less than a pass,
one of the target with blocks left out far more."""
STEP_SECONDS = 5e-5
"""Of a draft pass outside the model, where nothing was measured."""


def level_seconds(one: float, deepest: float, levels: int) -> float:
    """Of one level more of a head, by what drafting one level and all of them takes."""
    return max((deepest - one) / (levels - 1), 0.0) if levels > 1 else one / 2


def arm_of(name: Name, depth: int, draft: Callable[[str], CostCurve]) -> Arm:
    """First guesses for a drafter. draft: the cost curve of a draft model by rows, of what drafts at once by levels."""
    step = flat = seeing = 0.0
    for word in name.words:
        kind = word.kind
        flat, seeing = flat + kind.flat, seeing + kind.seeing
        if word.part is not None:
            curve = draft(word.part)
            if kind.runs in AT_ONCE:
                level = level_seconds(curve.seconds(1, 0), curve.seconds(curve.widest, 0), curve.widest)
                step, flat = step + level, flat + curve.seconds(1, 0) - level
                seeing += curve.seconds(1, 0) / FRONTIER
            else:
                step += curve.seconds(kind.rows, 0) + STEP_SECONDS * kind.rows
                seeing += curve.seconds(FRONTIER, 0) / FRONTIER * (kind.runs == "decoder")
    hope = max(word.kind.hope for word in name.words)
    part = name.models[0] if name.models else None
    members = tuple(word.text for word in name.words) if part and len(name.words) > 1 else ()
    runs = [word.kind.runs for word in name.words if word.part]
    fixed = _OWN_PASS if "skip" in runs else _MODEL_PASS if {"decoder", "exit"} & set(runs) else _HEAD_LEVEL
    return Arm(name.text, depth, part, step, flat + 1e-5, hope, seeing, members, fixed)
