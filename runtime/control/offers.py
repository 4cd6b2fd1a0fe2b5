"""What `auto` chooses among on a bundle, and what the controller assumes of each before it ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from paceline.memory.model import FRONTIER
from paceline.runtime.control.arms import Arm
from paceline.runtime.control.costs import CostCurve
from paceline.runtime.drafters.kinds import understand
from paceline.runtime.manifest import Part

_PYTHON = 5e-5
"""Seconds of a draft pass outside the model."""
_FLAT = {"lookup": 2e-5, "suffix": 5e-5, "recycle": 1.2e-4}
_SEEING = {"lookup": 2e-6, "suffix": 2e-5}
"""Seconds for each token that an index has not seen."""
_HOPE_CHAIN, _HOPE_TREE, _HOPE_FREE = 0.94, 0.95, 0.95
"""Acceptance of a level that a drafter could have at best: one that cannot pay even so is not tried."""


def offered(parts: Sequence[str], tables: bool) -> list[str]:
    """Names of arms, the first guess first. parts: draft models. tables: whether others may run."""
    named = [("chain", "tree") if len(parts) == 1 else (f"chain:{p}", f"tree:{p}") for p in parts]
    chains = [chain for chain, _ in named]
    free = ["lookup", "lookup,recycle"] if tables else []
    fused = [f"{chain},lookup" for chain in chains if tables]
    return [*chains, *free[:1], *(tree for _, tree in named), *free[1:], *fused]


def arm_of(name: str, depth: int, draft: Callable[[str], CostCurve], parts: Mapping[str, Part]) -> Arm:
    """First guesses for a drafter. draft: the cost curve of a draft model."""
    words = name.split(",")
    step = flat = seeing = 0.0
    part, trees = None, False
    for word in words:
        found = understand(word, parts)
        if found.part is not None:
            curve, part, trees = draft(found.part), part or found.part, found.kind == "tree"
            step += curve.seconds(FRONTIER if trees else 1, 0) + _PYTHON * (4 if trees else 1)
            seeing += curve.seconds(FRONTIER, 0) / FRONTIER
        else:
            flat += _FLAT.get(found.kind, 0.0)
            seeing += _SEEING.get(found.kind, 0.0)
    hope = _HOPE_TREE if trees or (step and len(words) > 1) else _HOPE_CHAIN if step else _HOPE_FREE
    members = tuple(words) if step and len(words) > 1 else ()
    return Arm(name, depth, part, step, flat + 1e-5, hope, seeing, members)
