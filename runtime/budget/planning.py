"""A plan for a bundle on this machine: reads sizes from the manifest, overheads and speeds from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from paceline.memory.budget import Budget, resident
from paceline.memory.cache import CacheFormat
from paceline.memory.errors import ArgumentError
from paceline.memory.ladder import Ladder
from paceline.memory.model import Choice, Overheads, terms
from paceline.memory.plan import Plan, Planner, Speeds, Wish
from paceline.memory.room import Room
from paceline.runtime.adaptation.pupil import learning_bytes
from paceline.runtime.budget.libraries import brought, recall_library
from paceline.runtime.budget.overheads import estimate, estimate_step, recall, rows_of, sizes_of, step_key
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.bundle.precision import forms_of
from paceline.runtime.control.costs import Points, remembered, rising
from paceline.runtime.drafters.kinds import KINDS
from paceline.runtime.drafters.names import Asked, Name, offered
from paceline.runtime.drafters.prices import STEP_SECONDS, level_seconds
from paceline.runtime.manifest import Part, PartKind
from paceline.runtime.model.key import Key
from paceline.runtime.part import AT_ONCE
from paceline.runtime.settings import Settings, beside_rows, learns, needs, scratch_rows

_VERIFY = ((1, 1.0), (4, 1.02), (8, 1.3), (16, 2.4), (32, 4.5), (65, 9.0))
"""Cost of a pass by rows, in passes over one, where nothing was measured: between those of small and large models."""
_SEARCHED = 5
"""Rows over which the search of a skip takes the price of one."""
_OVERHEAD = 0.03
"""Passes that drafting a round takes besides, and a draft pass of the smallest model, where nothing was measured."""
_ROUND_SECONDS = 1e-4
"""Of drafting a round, outside the models."""


def make_plan(
    bundle: Bundle, settings: Settings, drafter: Name, budget: Budget | None, process: int | None = None
) -> Plan:
    """The fastest way to run within the budget. Raises BudgetError where there is none.

    process: bytes resident before the bundle; None: those of now.
    """
    asked = needs(drafter, bundle, settings)
    there = resident() if process is None else process
    planner = _planner(bundle, settings, drafter, there, whole=budget is not None)
    wish = _wish(bundle, settings, drafter, asked)
    made = planner.plan(wish, None) if budget is None else planner.plan(wish, budget.total, budget.start)
    if not asked.optional:
        return replace(made, drafters=() if drafter.plain else (drafter.text,))
    models = asked.models if made.choice.room.models else ()
    arms = offered(models, bundle.manifest.drafters, made.choice.room.tables)
    return replace(made, drafters=tuple(dict.fromkeys(word.text for arm in arms for word in arm.words)))


def least_bytes(bundle: Bundle, settings: Settings, drafter: Name, process: int) -> int:
    """What the smallest way takes to run this drafter, or to run at all where `auto` decides. process: as in a plan."""
    asked = needs(drafter, bundle, settings)
    return _planner(bundle, settings, drafter, process).least(_wish(bundle, settings, drafter, asked))


def unplanned_bytes(bundle: Bundle, settings: Settings, drafter: Name) -> int:
    """What a session takes that was given no budget."""
    asked = needs(drafter, bundle, settings, every=True)
    planner = _planner(bundle, settings, drafter, resident(), every=True, whole=False)
    return planner.unbounded(_wish(bundle, settings, drafter, asked))


def _planner(
    bundle: Bundle, settings: Settings, drafter: Name, process: int, every: bool = False, whole: bool = True
) -> Planner:
    """every: `auto` with all draft models. whole: see `Fixed`."""
    parts, asked = bundle.manifest.drafters, needs(drafter, bundle, settings, every)
    places = settings.places
    target = replace(
        sizes_of(bundle, bundle.manifest.target, whole, settings.halved),
        kept=len(asked.taps),
        elsewhere=places.target.runs.keeps,
    )
    drafts = [
        replace(
            sizes_of(bundle, parts[name], whole),
            scratch=scratch_rows(parts[name], settings),
            widest=rows_of(parts[name], settings.mirror),
            learning=_learning(bundle, settings, parts[name]),
            elsewhere=places.of(parts[name]).runs.keeps,
        )
        for name in asked.models
    ]
    drafting = [places.of(parts[name]) for name in asked.models]

    def overheads(context: int, form: CacheFormat) -> Overheads:
        there = replace(settings, context=context, cache=form)
        return Overheads(
            process,
            recall(target_key(bundle, there))
            or estimate(target, bundle.manifest.target, True, places.target),
            tuple(
                recall(draft_key(bundle, there, name))
                or estimate(sizes, parts[name], False, places.of(parts[name]))
                for name, sizes in zip(asked.models, drafts, strict=True)
            ),
            needs(drafter, bundle, there, every).tables,
            brought([places.target]),
            brought(drafting, [places.target]),
        )

    return Planner(target, drafts, overheads, _speeds(bundle, settings, asked))


def _learning(bundle: Bundle, settings: Settings, part: Part) -> int:
    """Bytes that learning from use takes, where this part learns."""
    if not learns(part, settings):
        return 0
    graph = bundle.manifest.files[str(part.training)].bytes
    step = recall(step_key(bundle, part)) or estimate_step(sizes_of(bundle, part), graph)
    return step.session + learning_bytes(part)


def _wish(bundle: Bundle, settings: Settings, drafter: Name, asked: Asked) -> Wish:
    room = Room(
        nodes=settings.room.nodes,
        depth=min(settings.draft_depth or drafter.depth, settings.room.nodes),
        models=len(asked.models) > 0,
        tables=asked.free,
    )
    forms = forms_of(bundle.manifest)
    smaller = forms[forms.index(settings.cache) + 1 :]
    return Wish(
        context=settings.context, cache=settings.cache, room=room, plain=asked.optional, smaller=smaller
    )


def target_bytes(bundle: Bundle, settings: Settings, choice: Choice) -> int:
    """What the target takes under a choice, in a process where other graphs are open."""
    part = bundle.manifest.target
    sizes = sizes_of(bundle, part)
    known = recall(target_key(bundle, settings)) or estimate(sizes, part, False, settings.places.target)
    overheads = Overheads(0, known)
    return sum(term.bytes for term in terms(choice, sizes, (), overheads) if term.part == "target")


def keep_to(plan: Plan, bundle: Bundle, settings: Settings, drafter: Name) -> Settings:
    """The settings that keep to a plan of this drafter."""
    choice = plan.choice
    return replace(
        settings,
        room=replace(choice.room, nodes=max(choice.room.nodes, 1)),
        draft_depth=settings.draft_depth and max(min(choice.room.depth, settings.draft_depth), 1),
        chunk=choice.chunk,
        allowed=needs(drafter, bundle, settings).models if choice.room.models else (),
        reserved=plan.budget is not None,
    )


def ladder_of(plan: Plan) -> Ladder:
    """The rungs below a plan: down where half of what it keeps back is gone, up where all of it is there again."""
    choice, budget, kept = plan.choice, plan.budget or plan.total, plan.part("reserve")
    return Ladder(choice.room, choice.draft_rows > 256, budget - kept // 2, budget - kept)


def check_room(plan: Plan, bundle: Bundle, settings: Settings, drafter: Name) -> None:
    """Raise ValueError for a drafter that the plan has no memory for. settings: those that keep to it."""
    asked = needs(drafter, bundle, settings)
    models_fit = asked.optional or set(asked.models) <= set(settings.allowed or ())
    tables_fit = asked.tables <= plan.tables and (settings.room.tables or not asked.free)
    if models_fit and (tables_fit or (asked.optional and not settings.room.tables)):
        return
    raise ArgumentError(
        f"the memory plan was made without drafter {drafter.text!r} and has no room for it: start again with that one"
    )


def mirror_bytes(bundle: Bundle, settings: Settings, drafter: Name, plan: Plan) -> tuple[int, int]:
    """What drafting beside the target adds to a plan with it: rows of draft models, and the target's second graph."""
    parts, target = bundle.manifest.drafters, bundle.manifest.target
    models = needs(drafter, bundle, settings).models if plan.choice.room.models else ()
    rows = sum(
        beside_rows(parts[name], settings) * sizes_of(bundle, parts[name]).row(plan.choice.cache)
        for name in models
    )
    halves, whole = (sizes_of(bundle, target, halved=halved) for halved in (settings.halved, False))
    there = settings.places.target
    opened = estimate(halves, target, True, there).session - estimate(whole, target, True, there).session
    return rows, halves.weights - whole.weights + opened


def target_key(bundle: Bundle, settings: Settings) -> Key:
    """What the target's overheads hold for."""
    target, threads = bundle.manifest.target, settings.target_threads
    return Key(bundle, target, settings.places.target.name, threads, settings.cache, settings.halved)


def draft_key(bundle: Bundle, settings: Settings, part: str) -> Key:
    """What a draft model's overheads hold for."""
    found = bundle.manifest.drafters[part]
    threads = settings.draft_threads(found)
    return Key(bundle, found, settings.places.of(found).name, threads, settings.cache)


def estimated(bundle: Bundle, settings: Settings, drafter: Name, plan: Plan) -> list[str]:
    """The models of a plan whose overheads were never measured on this device, by name; the target is `target`."""
    parts = needs(drafter, bundle, settings).models if plan.choice.room.models else ()
    keys = {"target": target_key(bundle, settings)}
    keys |= {part: draft_key(bundle, settings, part) for part in parts}
    found = [name for name, key in keys.items() if recall(key) is None]
    drafters = bundle.manifest.drafters
    steps = {part: step_key(bundle, drafters[part]) for part in parts if learns(drafters[part], settings)}
    places, models = settings.places, bundle.manifest.drafters
    devices = [places.target, *(places.of(models[part]) for part in parts)]
    names = dict.fromkeys(device.name for device in devices if not device.on_cpu)
    found += [f"the library of {name}" for name in names if recall_library(name) is None]
    found += [f"the learning of {name}" for name, key in steps.items() if recall(key) is None]
    return found


def priced_by_search(bundle: Bundle, settings: Settings, drafter: Name, plan: Plan) -> list[str]:
    """The skips of a plan whose prices are those of their search, since nothing was measured on this device."""
    parts = needs(drafter, bundle, settings).models if plan.choice.room.models else ()
    target = _measured_target(bundle, settings)
    drafters = bundle.manifest.drafters
    return [
        name
        for name in parts
        if drafters[name].prices is not None
        and (target is None or _measured_draft(bundle, settings, name) is None)
    ]


def _speeds(bundle: Bundle, settings: Settings, asked: Asked) -> Speeds:
    """Costs as measured on this device, else as a skip's search measured them, else usual ones.

    Acceptance is that of the manifest, else usual.
    """
    manifest = bundle.manifest
    target = _measured_target(bundle, settings)
    step, overhead, searched = 0.0, _OVERHEAD, None
    if target is not None:
        overhead = _ROUND_SECONDS / rising(target, 1)
    for name in asked.models:
        draft = manifest.drafters[name]
        own = _measured_draft(bundle, settings, name)
        if target is not None and own is not None:
            one, deepest = rising(own, 1), own.seconds[-1][0]
            head = draft.kind in AT_ONCE
            level = level_seconds(one, rising(own, deepest), deepest) if head else one + STEP_SECONDS
            step += level / rising(target, 1)
            overhead += (one - level) / rising(target, 1) if head else 0.0
        elif draft.prices is not None:
            step += draft.prices.draft
            searched = draft.prices.row
        else:
            step += _OVERHEAD + draft.parameters / manifest.target.parameters
    model, free = (acceptance_of(bundle, parts) for parts in (asked.models, ()))
    cost = _usual_cost if target is None else partial(_known_cost, target)
    if target is None and searched is not None:
        cost = partial(_searched_cost, searched)
    return Speeds(cost, step, model, free, overhead)


def acceptance_of(bundle: Bundle, parts: Sequence[str]) -> float:
    """The best that the manifest recorded of the kinds that run these parts, or none; else what was measured as they
    were made, or what is usual.
    """
    runs: set[PartKind | None] = {bundle.manifest.drafters[part].kind for part in parts} or {None}
    kinds, known = [kind for kind in KINDS if kind.runs in runs and kind.rows < 2], bundle.manifest.acceptance
    words = [kind.word for kind in kinds]
    words += [*parts, *(f"{word}:{part}" for word in words for part in parts)]
    recorded = [_chance(known[word], 4) for word in words if word in known]
    made = [bundle.manifest.drafters[part].accepted[:4] for part in parts]
    recorded = recorded or [
        _chance(1 + float(np.cumprod(shares).sum()), len(shares)) for shares in made if shares
    ]
    return max(recorded, default=max(kind.usual for kind in kinds))


def _measured_target(bundle: Bundle, settings: Settings) -> Points | None:
    return remembered(target_key(bundle, settings).text())


def _measured_draft(bundle: Bundle, settings: Settings, part: str) -> Points | None:
    return remembered(draft_key(bundle, settings, part).text())


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


def _known_cost(points: Points, rows: int) -> float:
    """As measured, and beyond the widest as usual."""
    widest = points.seconds[-1][0]
    return rising(points, min(rows, widest)) * _usual_cost(max(rows, widest)) / _usual_cost(widest)


def _searched_cost(row: float, rows: int) -> float:
    """By the price of one row more, as far as it was measured, and beyond that as usual."""
    inside = min(rows, _SEARCHED)
    return (1 + row * (inside - 1)) * _usual_cost(max(rows, _SEARCHED)) / _usual_cost(_SEARCHED)


def _usual_cost(rows: int) -> float:
    xs, ys = zip(*_VERIFY, strict=True)
    return float(np.interp(rows, xs, ys))
