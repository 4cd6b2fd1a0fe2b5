"""From options to a session: checked against bundle and machine, planned where there is a budget, then loaded."""

from __future__ import annotations

import time
from collections.abc import Callable

from paceline.memory.budget import Budget, budget_of, resident
from paceline.memory.errors import ArgumentError
from paceline.memory.plan import BudgetError, Plan
from paceline.runtime.budget.planning import estimated, keep_to, make_plan, unplanned_bytes
from paceline.runtime.budget.pressure import give_back
from paceline.runtime.drafters.names import parse
from paceline.runtime.loaded import Shared
from paceline.runtime.model.graph import Temporaries
from paceline.runtime.options import Options, takes
from paceline.runtime.overlapping import journal, mirrored
from paceline.runtime.placement import settle
from paceline.runtime.session import Session

_GENEROUS, _LEAST = 4, 1 << 29
"""Without a budget temporaries of graphs may take so many times what the process is planned to take, or so much."""


def open_session(
    options: Options,
    budget: Budget | None = None,
    planned: Callable[[Plan], None] = lambda plan: None,
    measuring: Callable[[str], None] = lambda device: None,
) -> Session:
    """Load a bundle for generating.

    budget: memory that is kept to; all buffers are then resident from the start. None: what `options.memory` says.
    planned: told its plan before anything is loaded, and once more where the first load on a device measured what
    changes it. measuring: see `settle`. Raises BundleError (the bundle), ArgumentError (a choice), DeviceError (a
    device), BudgetError (too little memory).
    """
    begun, drafter = time.perf_counter(), options.drafter
    if budget is None and options.memory is not None:
        budget = budget_of(options.memory, options.memory_scope)
    if options.bundle is None:
        raise ArgumentError("no bundle was named")
    bundle, settings = settle(options, budget, measuring)
    name = parse(drafter, bundle.manifest.drafters)
    shared = Shared(bundle, growth=budget is not None and budget.start > 0)
    if settings.mirror:
        shared.journal = journal(bundle, settings, name)
    settings = mirrored(bundle, settings, name, options.mirror, shared if budget is None else None)
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
