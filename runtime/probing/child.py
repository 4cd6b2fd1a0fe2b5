"""What runs in a process of its own: one device is tried, and a bundle's passes are timed on it.

python -m paceline.runtime.probing.child JOB OUT reads a job from the file JOB, JSON, and writes what it found to OUT.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from paceline.memory.errors import Error
from paceline.runtime.budget.libraries import Library, guess
from paceline.runtime.budget.overheads import growth
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.control.costs import FAR, NEAR, Probed
from paceline.runtime.loaded import Shared
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import Device, find_device
from paceline.runtime.model.head import Head
from paceline.runtime.model.model import Model
from paceline.runtime.model.opening import open_on
from paceline.runtime.model.ort import DeviceError, onnxruntime
from paceline.runtime.model.providers import CPU, add_library
from paceline.runtime.options import Options
from paceline.runtime.places import Places
from paceline.runtime.probing.costs import timed_parts
from paceline.runtime.probing.trial import TOLERANCE, Trial
from paceline.runtime.probing.trying import Cost
from paceline.runtime.settings import Settings
from paceline.runtime.settle import opened, settled
from paceline.runtime.target import TARGET

WIDEST = 8
"""Rows of the wide pass that is timed."""
_HOPELESS = 3.0
"""What takes so many times as long for a token as elsewhere is timed no further."""
_TRIES, _SECONDS = (3, 50), 0.1
"""The least and the most passes that are timed of a kind, and the time for which it goes on between."""


def main(job: Path, out: Path) -> None:
    """Do one job, see `trying.Asked`."""
    asked = json.loads(job.read_text())
    found: dict[str, object] = {}
    try:
        if asked["library"]:
            add_library(asked["library"])
        device = find_device(asked["device"])
        found["problem"], found["library"] = try_device(device)
        if asked["options"] and not found["problem"]:
            options = Options(**asked["options"])
            costs = _costs(options, device, asked["parts"], asked["beyond"])
            found["costs"] = {part: asdict(cost) for part, cost in costs}
    except Error as error:
        found["problem"] = str(error)
    write_atomically(out, json.dumps(found).encode())


def try_device(device: Device) -> tuple[str, Library | None]:
    """What is wrong with the results of a device, "" where they are right, and what its library takes.

    Raises DeviceError where there are no results.
    """
    if device.on_cpu:
        return "", None
    trial, ort, off, added = Trial(), onnxruntime(), list[float](), list[int]()
    # What ONNX Runtime itself takes for its first session is not the device's.
    own = ort.InferenceSession(trial.graph, providers=[CPU.name])
    own.run(None, {"x": trial.x})
    sessions = []

    def run_another() -> None:
        session = open_on(device, trial.graph, Path("the trial graph"), 1, ort.SessionOptions, packed=False)
        sessions.append(session)
        (got,) = session.run(None, {"x": trial.x})
        off.append(float(np.abs(got - trial.y).max()))

    try:
        added += [growth(run_another) for _ in range(2)]
    except DeviceError:
        raise
    except Exception as error:
        return f"it cannot run a graph that it took: {' '.join(str(error).split())[:300]}", None
    if not max(off) <= TOLERANCE:
        return f"it computes wrongly: off by {max(off):.2g} where {TOLERANCE:g} would do", None
    first, second = added
    # Where the system does not tell what a process has, a guess is all there will be.
    return "", Library(max(first - second, 0), second) if first else guess(device.runs)


def _costs(
    options: Options, device: Device, parts: list[str], beyond: Mapping[str, float]
) -> Iterator[tuple[str, Cost]]:
    bundle, settings = settled(options, opened(options), Places(device, device, device))
    shared = Shared(bundle)
    for name in parts or timed_parts(bundle):
        part = bundle.manifest.target if name == TARGET else bundle.manifest.drafters[name]
        threads = settings.target_threads if name == TARGET else settings.draft_threads(part)
        try:
            yield name, _cost(*_timed(shared, part, settings, device, threads), beyond.get(name, np.inf))
        except Error as error:
            yield name, Cost(problem=str(error))


def _timed(
    shared: Shared, part: Part, settings: Settings, device: Device, threads: int
) -> tuple[Probed, int]:
    """What is timed of a part, and its widest pass; of a head a draft, and its levels."""
    graph, _ = shared.runner(part, settings.cache, device, threads)
    context = min(part.context, settings.context)
    model = Model(graph, part, context, WIDEST, cache=settings.cache)
    if part.kind != "head":
        return model, min(WIDEST, context)
    head = Head(
        model, shared.bundle.draft_ids(part), lambda path: shared.graph(path, part, device, threads)[0]
    )
    return head, min(head.depths[-1], WIDEST)


def _cost(timed: Probed, widest: int, beyond: float) -> Cost:
    """beyond: seconds of one token that it is measured against."""
    near, far = (max(min(past, timed.context - widest), 0) for past in (NEAR, FAR))
    if (one := _least(timed, 1, near)) > _HOPELESS * beyond:
        return Cost(one, tokens=1)
    wide, far_one, far_wide = (_least(timed, *kind) for kind in ((widest, near), (1, far), (widest, far)))
    return Cost(one, wide, far_one, far_wide, tokens=widest)


def _least(timed: Probed, rows: int, past: int) -> float:
    """The least seconds of some passes; the first one, which may open or compile a graph, is not counted."""
    timed.probe(rows, past)
    found, begun = list[float](), time.perf_counter()
    while len(found) < _TRIES[0] or (len(found) < _TRIES[1] and time.perf_counter() < begun + _SECONDS):
        at = time.perf_counter()
        timed.probe(rows, past)
        found.append(max(time.perf_counter() - at, 1e-7))
    return min(found)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
