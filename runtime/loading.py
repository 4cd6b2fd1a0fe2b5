"""From a bundle folder to a session: settled, planned where there is a budget, then loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from paceline.memory.budget import Budget, resident
from paceline.memory.plan import BudgetError, Plan
from paceline.runtime.budget.planning import keep_to, make_plan, measured_before, unplanned_bytes
from paceline.runtime.drafters.kinds import parse
from paceline.runtime.loaded import Shared
from paceline.runtime.session import Session
from paceline.runtime.settle import settle


def load(
    folder: str | Path,
    *,
    drafter: str = "auto",
    context: int | None = None,
    threads: int | None = None,
    max_nodes: int | None = None,
    draft_depth: int | None = None,
    device: str = "cpu",
    device_draft: str | None = None,
    suffix_store: str | Path | None = None,
    cache: str | None = None,
    overflow: str = "stop",
    budget: Budget | None = None,
    planned: Callable[[Plan], None] = lambda plan: None,
) -> Session:
    """Open a bundle folder for generating.

    context: rows of the cache, at most the model's. max_nodes: most drafted tokens a round (16).
    cache: "fp32", "fp16" or "int8"; None is fp16 where the bundle has it.
    overflow: what a full context does: "stop" ends the answer, "slide" goes on with the first tokens and the recent.
    budget: memory that is kept to; all buffers are then resident from the start. planned: told its plan before
    anything is loaded, and once more where the first load on a device measured what changes it.
    Raises BundleError (the bundle), ValueError (an argument), DeviceError (a device), BudgetError (too little memory).
    """
    begun = time.perf_counter()
    bundle, settings = settle(
        folder,
        context=context,
        threads=threads,
        max_nodes=max_nodes,
        draft_depth=draft_depth,
        device=device,
        device_draft=device_draft,
        suffix_store=suffix_store,
        cache=cache,
        overflow=overflow,
    )
    name = parse(drafter, bundle.manifest.drafters)
    shared = Shared(bundle, growth=budget is not None and budget.start > 0)
    if budget is None:
        shared.single = shared.planned = unplanned_bytes(bundle, settings, name)
        return Session(shared, settings, name, begun)
    process = resident()

    def fit(plan: Plan) -> Session:
        planned(plan)
        shared.planned = plan.total
        return Session(shared, keep_to(plan, bundle, settings, name), name, begun, plan)

    plan = make_plan(bundle, settings, name, budget, process)
    known = measured_before(bundle, settings, name)
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
    shared.drop_graphs(() if better.choice.model else bundle.manifest.drafters.values())
    return fit(better)
