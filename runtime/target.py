"""The target of a session: its graphs, its cache, and buffers for trees of the room's nodes."""

from __future__ import annotations

from paceline.runtime.beside import Beside
from paceline.runtime.budget.overheads import weigh
from paceline.runtime.budget.planning import target_key
from paceline.runtime.loaded import Shared
from paceline.runtime.model.first_half import FirstHalf
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.settings import Settings
from paceline.runtime.split import halves


def open_target(shared: Shared, settings: Settings, beside: Beside | None) -> Model:
    """The target on its device. beside: who hears what its first graph says early, where it runs in two.

    What it takes is measured where buffers are resident, no graph was open before and nobody knows it.
    """
    s, part, first, more = settings, shared.bundle.manifest.target, None, 0
    widest = s.room.nodes + 1 if s.room.models or s.room.tables else 1
    waiting, before = 0 if part.static is None else widest - 1, Graph.opened
    held = s.context + waiting if s.reserved else None
    early, runs = halves(part) if s.halved else (part, part)
    device, threads = s.places.target, s.target_threads
    graph, opened = shared.runner(runs, s.cache, device, threads, held)
    if s.halved and beside is not None:
        half, added = shared.graph(early.graph_for(s.cache), early, device, threads)
        first, more = FirstHalf(half, part, beside.hear), added or 0
    model = Model(graph, part, s.context, widest, s.chunk, waiting, s.reserved, s.cache, None, first)
    if s.reserved and opened is not None and before == 0:
        weigh(target_key(shared.bundle, s), opened + more, model)
    return model
