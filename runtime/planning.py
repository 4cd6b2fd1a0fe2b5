"""A plan for a bundle on this machine: reads sizes from the manifest, overheads and speeds from what was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from paceline.memory.cache import CacheFormat
from paceline.memory.ladder import Ceiling, Ladder
from paceline.memory.model import Overheads
from paceline.memory.plan import Plan, Planner, Speeds, Wish
from paceline.memory.size import parse_size
from paceline.runtime.assemble import Settings, draft_threads
from paceline.runtime.bundle import Bundle
from paceline.runtime.costs import Points, cost_key, line, remembered
from paceline.runtime.manifest import Manifest, Part
from paceline.runtime.overheads import Key, estimate, recall, resident, sizes_of
from paceline.runtime.words import Asked, needs

Scope = Literal["process", "growth"]
_VERIFY = ((1, 1.0), (4, 1.02), (8, 1.3), (16, 2.4), (32, 4.5), (65, 9.0))
"""Cost of a pass by rows, in passes over one, where nothing was measured: between those of small and large models."""
_MODEL, _FREE = 0.65, 0.2
"""Acceptance of a drafted token where the manifest has none: of a draft model, of drafters without one."""


@dataclass(frozen=True, slots=True)
class Budget:
    """bytes for the whole process, or for its growth from `start` on."""

    bytes: int
    start: int = 0

    @property
    def total(self) -> int:
        """Bytes that the process may reach."""
        return self.bytes + self.start


def budget_of(memory: str | int, scope: Scope, start: int) -> Budget:
    """Understand `900MB`. Raises ValueError for what is no size."""
    size = parse_size(memory) if isinstance(memory, str) else memory
    if size < 1:
        raise ValueError(f"a budget of {size} bytes holds nothing: write 900MB, 1.5GB or 800MiB")
    return Budget(size, start if scope == "growth" else 0)


def make_plan(bundle: Bundle, settings: Settings, drafter: str, budget: Budget | None) -> Plan:
    """The fastest way to run within the budget. Raises BudgetError where there is none."""
    planner, wish = _prepare(bundle, settings, drafter)
    return planner.plan(wish, None if budget is None else budget.total)


def unplanned_bytes(bundle: Bundle, settings: Settings, drafter: str) -> int:
    """What a session takes that was given no budget."""
    planner, wish = _prepare(bundle, settings, drafter)
    return planner.unbounded(wish)


def _prepare(bundle: Bundle, settings: Settings, drafter: str) -> tuple[Planner, Wish]:
    asked = needs(drafter, bundle, settings.context)
    target = sizes_of(bundle, bundle.manifest.target)
    draft = None if asked.part is None else sizes_of(bundle, bundle.manifest.drafters[asked.part])
    overheads = Overheads(
        resident(),
        recall(target_key(bundle, settings)) or estimate(target, first=True),
        None
        if draft is None or asked.part is None
        else recall(draft_key(bundle, settings, asked.part)) or estimate(draft, first=False),
    )
    depth = min(settings.draft_depth or settings.max_nodes, settings.max_nodes)
    wish = Wish(
        settings.context,
        settings.cache,
        settings.max_nodes,
        depth,
        asked.part is not None,
        asked.tables > 0,
        asked.optional,
        _smaller(settings.cache, bundle.manifest),
    )
    return Planner(target, draft, overheads, _speeds(bundle, settings, asked), asked.tables), wish


def keep_to(plan: Plan, settings: Settings) -> Settings:
    """The settings that keep to a plan."""
    choice = plan.choice
    return replace(
        settings,
        max_nodes=max(choice.nodes, 1),
        draft_depth=settings.draft_depth and max(min(choice.depth, settings.draft_depth), 1),
        chunk=choice.chunk,
        draft_rows=choice.draft_rows if choice.draft_rows < choice.context else None,
        models=choice.model,
        tables=choice.free,
        reserved=plan.budget is not None,
    )


def ladder_of(plan: Plan) -> Ladder:
    """The rungs below a plan, and the bytes at which to step down: half of what it keeps back is left."""
    choice = plan.choice
    top = Ceiling(choice.nodes, choice.depth, choice.model, None)
    limit = (plan.budget or plan.total) - plan.part("reserve") // 2
    return Ladder(top, choice.free, choice.model and choice.draft_rows > 256, limit)


def check_room(plan: Plan, bundle: Bundle, drafter: str) -> None:
    """Raise ValueError for a drafter that the plan has no memory for."""
    choice = plan.choice
    asked = needs(drafter, bundle, choice.context)
    if (asked.optional or asked.part is None or choice.model) and (
        asked.tables == 0 or asked.optional or choice.free
    ):
        return
    raise ValueError(
        f"the memory plan has no room for drafter {drafter!r}: start again with --drafter {drafter} "
        "or a larger --memory"
    )


def target_key(bundle: Bundle, settings: Settings) -> Key:
    """What the target's overheads hold for."""
    return Key(bundle, bundle.manifest.target, settings.device.name, settings.threads)


def draft_key(bundle: Bundle, settings: Settings, part: str) -> Key:
    """What a draft model's overheads hold for."""
    found = bundle.manifest.drafters[part]
    return Key(bundle, found, settings.device_draft.name, draft_threads(found, settings.threads))


def measured_before(bundle: Bundle, settings: Settings, drafter: str) -> bool:
    """Whether a plan rests on measurements of this bundle on this device."""
    part = needs(drafter, bundle, settings.context).part
    keys = [target_key(bundle, settings)] + ([] if part is None else [draft_key(bundle, settings, part)])
    return all(recall(key) is not None for key in keys)


def _smaller(form: CacheFormat, manifest: Manifest) -> tuple[CacheFormat, ...]:
    """Cache forms that every model of the bundle can run and that take less."""
    order: tuple[CacheFormat, ...] = ("fp32", "fp16", "int8")
    parts = [manifest.target, *manifest.drafters.values()]
    return tuple(f for f in order[order.index(form) + 1 :] if all(f in part.caches for part in parts))


def _speeds(bundle: Bundle, settings: Settings, asked: Asked) -> Speeds:
    """Costs as measured on this device, else usual ones; acceptance as the manifest recorded it, else usual."""
    manifest = bundle.manifest
    target = _measured(bundle, settings, manifest.target, settings.device.name, settings.threads)
    step = 0.0
    if asked.part is not None:
        draft = manifest.drafters[asked.part]
        threads = draft_threads(draft, settings.threads)
        own = _measured(bundle, settings, draft, settings.device_draft.name, threads)
        step = 0.03 + draft.parameters / manifest.target.parameters
        if target is not None and own is not None:
            step = line(own, 1) / line(target, 1)
    model = max(
        (_chance(v, 4) for k, v in manifest.acceptance.items() if k.startswith("chain")), default=_MODEL
    )
    free = max(
        (_chance(v, 4) for k, v in manifest.acceptance.items() if k.startswith("lookup")), default=_FREE
    )
    return Speeds(_usual_cost if target is None else partial(line, target), step, model, free)


def _measured(bundle: Bundle, settings: Settings, part: Part, device: str, threads: int) -> Points | None:
    form = settings.cache
    return remembered(cost_key(bundle, part, part.graph_for(form), device, threads, form))


def _chance(tokens: float, depth: int) -> float:
    """The acceptance of one token at which a chain of this depth yields so many tokens a round."""
    low, high = 0.0, 0.99
    for _ in range(20):
        middle = (low + high) / 2
        if (1 - middle ** (depth + 1)) / (1 - middle) < tokens:
            low = middle
        else:
            high = middle
    return low


def _usual_cost(rows: int) -> float:
    xs, ys = zip(*_VERIFY, strict=True)
    return float(np.interp(rows, xs, ys))
