"""The target of a session: its graphs, its cache, and buffers for trees of the room's nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from paceline.memory.plan import BudgetError, Plan
from paceline.memory.size import show_size
from paceline.runtime.beside import Beside
from paceline.runtime.budget.libraries import brought
from paceline.runtime.budget.overheads import weigh
from paceline.runtime.budget.planning import target_bytes, target_key
from paceline.runtime.budget.pressure import give_back
from paceline.runtime.loaded import Shared
from paceline.runtime.model.device import find_device
from paceline.runtime.model.first_half import FirstHalf
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.static import StaticGraphs
from paceline.runtime.profiles import with_free_target
from paceline.runtime.settings import Settings
from paceline.runtime.split import halves

TARGET = "target"
"""What statistics call it among the parts of a bundle."""


def open_target(shared: Shared, settings: Settings, beside: Beside | None) -> Model:
    """The target on its device. beside: who hears what its first graph says early, where it runs in two.

    What it takes is measured where buffers are resident, no graph was open before and nobody knows it.
    """
    s, part, before = settings, shared.bundle.manifest.target, Graph.opened
    widest = s.room.nodes + 1 if s.room.models or s.room.tables else 1
    waiting = 0 if part.static is None else widest - 1
    graph, first, opened = _graphs(shared, s, beside, s.context + waiting)
    model = Model(graph, part, s.context, widest, s.chunk, waiting, s.reserved, s.cache, None, first)
    if s.reserved and opened is not None and before == 0:
        weigh(target_key(shared.bundle, s), opened, model, library=brought([s.places.target]))
    return model


def _graphs(
    shared: Shared, settings: Settings, beside: Beside | None, rows: int
) -> tuple[Graph | StaticGraphs, FirstHalf | None, int | None]:
    """What runs the target over so many rows of a cache, and what opening it added, None where it was open."""
    s, part, first, more = settings, shared.bundle.manifest.target, None, 0
    early, runs = halves(part) if s.halved else (part, part)
    device, threads = s.places.target, s.target_threads
    graph, opened = shared.runner(runs, s.cache, device, threads, rows if s.reserved else None)
    if s.halved and beside is not None:
        half, added = shared.graph(early.graph_for(s.cache), early, device, threads)
        first, more = FirstHalf(half, part, beside.hear), added or 0
    return graph, first, None if opened is None else opened + more


def on_cpu(settings: Settings) -> Settings:
    """The same with the target on the CPU."""
    return replace(settings, places=replace(settings.places, target=find_device("cpu")))


def move_target(
    shared: Shared,
    settings: Settings,
    model: Model,
    beside: Beside | None,
    plan: Plan | None,
    used: Callable[[], int],
) -> Settings:
    """Let a target whose device is lost go on on the CPU, where it has read nothing; returns the settings from here on.

    used: bytes of the process. Raises BundleError where it cannot be opened there, BudgetError where that would pass
    the plan: then it can run nowhere.
    """
    model.leave(sole=len(shared.sessions) < 2)
    shared.drop_graphs([model.part], settings.places.target)
    shared.bundle, shared.fallen = with_free_target(shared.bundle), True
    moved = on_cpu(settings)
    give_back()
    if plan is not None and plan.budget is not None:
        takes, left = target_bytes(shared.bundle, moved, plan.choice), plan.budget - used()
        if takes > left:
            raise BudgetError(
                f"there it takes {show_size(takes)}, and the memory plan has {show_size(max(left, 0))} left"
            )
    graph, first, _ = _graphs(shared, moved, beside, moved.context)
    model.go_on(graph, shared.bundle.manifest.target, first)
    return moved
