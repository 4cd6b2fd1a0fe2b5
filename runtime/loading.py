"""From options to a session: checked against bundle and machine, planned where there is a budget, then loaded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from paceline.memory.budget import Budget, budget_of, check_scope, resident
from paceline.memory.errors import ArgumentError
from paceline.memory.plan import BudgetError, Plan
from paceline.memory.room import Room
from paceline.runtime.arguments import path
from paceline.runtime.budget.planning import estimated, keep_to, make_plan, unplanned_bytes
from paceline.runtime.budget.pressure import give_back
from paceline.runtime.bundle.bundle import Bundle, open_bundle
from paceline.runtime.bundle.guests import with_guest
from paceline.runtime.bundle.precision import cache_form
from paceline.runtime.drafters.branches import WORTH
from paceline.runtime.drafters.names import parse
from paceline.runtime.loaded import Shared
from paceline.runtime.model.graph import Temporaries
from paceline.runtime.model.processors import default_threads
from paceline.runtime.model.providers import add_library
from paceline.runtime.options import Options, flags_of, takes
from paceline.runtime.overlapping import overlap_pays
from paceline.runtime.places import places_of
from paceline.runtime.profiles import as_run
from paceline.runtime.session import Session
from paceline.runtime.settings import Settings, context_limit

_GENEROUS, _LEAST = 4, 1 << 29
"""Without a budget temporaries of graphs may take so many times what the process is planned to take, or so much."""


def settle(options: Options) -> tuple[Bundle, Settings]:
    """Open and verify the bundle, and settle how it is to run. `options.bundle` must be there.

    Raises BundleError (the bundle), ArgumentError (a choice), DeviceError (a device).
    """
    _check(options)
    opened = open_bundle(Path(options.bundle or ""))
    if options.drafter_bundle is not None:
        opened = with_guest(opened, open_bundle(Path(options.drafter_bundle)))
    if options.provider_library is not None:
        add_library(options.provider_library)
    places = places_of(options)
    opened = as_run(opened, places, options.profile)
    nodes = options.max_nodes or 16
    settings = Settings(
        context=context_limit(opened.manifest.target, options.context),
        threads=options.threads or default_threads(),
        room=Room(nodes=nodes, depth=options.draft_depth or nodes),
        draft_depth=options.draft_depth,
        places=places,
        suffix_store=None if options.suffix_store is None else Path(options.suffix_store),
        cache=cache_form(opened.manifest, options.cache),
        overflow=options.overflow or "stop",
        growth=options.tree,
        adapt=options.adapt == "on",
        mirror=options.mirror != "off",
        branches=options.mirror_branches or ("exit" if _splits(opened) else "weight"),
    )
    try:
        _check_mirror(settings, opened)
    except ArgumentError:
        if options.mirror == "on" or options.mirror_branches == "exit":
            raise
        settings = replace(settings, mirror=False)
    return opened, settings


def _splits(bundle: Bundle) -> bool:
    """Whether the target can run in two graphs. Static ones are whole."""
    return bundle.manifest.target.split is not None and bundle.manifest.target.static is None


def _check_mirror(settings: Settings, bundle: Bundle) -> None:
    if not settings.mirror:
        return
    if settings.branches == "exit" and not _splits(bundle):
        raise ArgumentError(
            f"{bundle.folder} has no split, whose first half could say what may follow: leave --mirror-branches exit "
            "out, or make one with 'paceline export BUNDLE OUT --split'"
        )
    if settings.threads < 2:
        raise ArgumentError(
            "the mirror takes a thread of its own: give --threads 2 or more, or leave --mirror on out"
        )
    if all(part.kind != "decoder" for part in bundle.manifest.drafters.values()):
        raise ArgumentError(
            f"{bundle.folder} has no draft model that could go on beside its target: leave --mirror on out, or give "
            "--drafter-bundle"
        )


def _check(options: Options) -> None:
    """Types and ranges of the choices, as their flags have them."""
    optional = {field.name for field in fields(options) if field.default is None}
    for name, flag in flags_of(type(options)).items():
        value = getattr(options, name)
        if value is None and name in optional:
            continue
        if flag.least is not None:
            if isinstance(value, bool) or not isinstance(value, int):
                raise ArgumentError(f"{name} must be a whole number, not {value!r:.40}")
            if value < flag.least or (flag.most is not None and value > flag.most and name != "threads"):
                legal = f"{flag.least} or more" if flag.most is None else f"from {flag.least} to {flag.most}"
                raise ArgumentError(f"{name} must be {legal}, not {value}")
        elif name in ("bundle", "drafter_bundle", "suffix_store"):
            path(name, value)
        elif not isinstance(value, str) and name != "memory":
            raise ArgumentError(f"{name} must be a name, not {value!r:.40}")
    check_scope(options.memory_scope)
    if (
        options.suffix_store is not None
        and not (folder := Path(options.suffix_store).absolute().parent).is_dir()
    ):
        raise ArgumentError(f"suffix store {options.suffix_store}: there is no folder {folder}")
    if options.overflow not in (None, "stop", "slide"):
        raise ArgumentError(f"overflow is stop or slide, not {options.overflow!r:.40}")
    if options.adapt not in ("on", "off"):
        raise ArgumentError(f"adapt is on or off, not {options.adapt!r:.40}")
    if options.mirror not in ("on", "off", "auto"):
        raise ArgumentError(f"mirror is on, off or auto, not {options.mirror!r:.40}")
    if options.mirror_branches not in (None, *WORTH):
        raise ArgumentError(
            f"mirror_branches is one of {', '.join(WORTH)}, not {options.mirror_branches!r:.40}"
        )
    if options.profile not in ("auto", "static"):
        raise ArgumentError(f"profile is auto or static, not {options.profile!r:.40}")
    if options.tree not in ("dynamic", "static"):
        raise ArgumentError(f"tree is dynamic or static, not {options.tree!r:.40}")
    if options.threads is not None and options.threads > (most := 4 * (os.cpu_count() or 1)):
        raise ArgumentError(
            f"{options.threads} threads on {os.cpu_count()} cores only wait for each other: use {most} or fewer"
        )


def open_session(
    options: Options, budget: Budget | None = None, planned: Callable[[Plan], None] = lambda plan: None
) -> Session:
    """Load a bundle for generating.

    budget: memory that is kept to; all buffers are then resident from the start. None: what `options.memory` says.
    planned: told its plan before anything is loaded, and once more where the first load on a device measured what
    changes it. Raises BundleError (the bundle), ArgumentError (a choice), DeviceError (a device), BudgetError (too
    little memory).
    """
    begun, drafter = time.perf_counter(), options.drafter
    if budget is None and options.memory is not None:
        budget = budget_of(options.memory, options.memory_scope)
    if options.bundle is None:
        raise ArgumentError("no bundle was named")
    bundle, settings = settle(options)
    name = parse(drafter, bundle.manifest.drafters)
    shared = Shared(bundle, growth=budget is not None and budget.start > 0)
    if options.mirror == "auto" and settings.mirror:
        settings = replace(settings, mirror=overlap_pays(shared, settings, measures=budget is None))
    if budget is None:
        shared.single = shared.planned = unplanned_bytes(bundle, settings, name)
        shared.temporaries = Temporaries(shared.single, max(_GENEROUS * shared.single, _LEAST))
        return Session(shared, settings, name, begun)
    give_back()  # what reading the tokenizer left behind is not what the process needs
    process = resident()

    def fit(plan: Plan) -> Session:
        planned(plan)
        shared.planned = plan.total
        shared.temporaries = Temporaries(plan.total - process, budget.total - process)
        return Session(shared, keep_to(plan, bundle, settings, name), name, begun, plan)

    plan = make_plan(bundle, settings, name, budget, process)
    known = not estimated(bundle, settings, name, plan)
    session = fit(plan)
    if known:
        return session
    try:
        better = make_plan(bundle, settings, name, budget, process)
    except BudgetError:
        session.close()
        raise
    if better.choice == plan.choice:
        session.plan, shared.planned = better, better.total
        return session
    session.close()
    shared.drop_graphs(() if better.choice.room.models else bundle.manifest.drafters.values())
    return fit(better)


load = takes(Options)(open_session)
