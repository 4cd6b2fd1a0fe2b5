"""What runs in a process of its own: one device is tried, and a bundle's passes are timed on it.

python -m paceline.runtime.probing.child JOB OUT reads a job from the file JOB, JSON, and writes what it found to OUT.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from paceline.memory.cache import CacheFormat
from paceline.memory.errors import Error
from paceline.runtime.bundle.bundle import Bundle, open_bundle
from paceline.runtime.bundle.precision import cache_form
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.control.costs import Probed, line, measure, warm
from paceline.runtime.loaded import Shared
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import Device, find_device
from paceline.runtime.model.head import Head
from paceline.runtime.model.model import Model
from paceline.runtime.model.opening import open_on
from paceline.runtime.model.ort import onnxruntime
from paceline.runtime.model.providers import add_library
from paceline.runtime.places import Places
from paceline.runtime.probing.trial import TOLERANCE, Trial
from paceline.runtime.profiles import as_run
from paceline.runtime.settings import draft_threads

WIDEST = 8
"""Rows of the wide pass that is timed."""
_CONTEXT, _SECONDS = 1024, 0.5


def main(job: Path, out: Path) -> None:
    """Do one job: `device`, and where they are given `library` (NAME=PATH), `bundle` and `threads`."""
    asked = json.loads(job.read_text())
    found: dict[str, object] = {}
    try:
        if asked.get("library"):
            add_library(asked["library"])
        device = find_device(asked["device"])
        found["problem"] = try_device(device)
        if asked.get("bundle") and not found["problem"]:
            found["costs"] = dict(_costs(open_bundle(Path(asked["bundle"])), device, asked["threads"]))
    except Error as error:
        found["problem"] = str(error)
    write_atomically(out, json.dumps(found).encode())


def try_device(device: Device) -> str:
    """What is wrong with the results of a device; "" where they are right. Raises DeviceError where there are none."""
    if device.on_cpu:
        return ""
    trial = Trial()
    ort = onnxruntime()
    session = open_on(device, trial.graph, Path("the trial graph"), 1, ort.SessionOptions, packed=False)
    try:
        (got,) = session.run(None, {"x": trial.x})
    except Exception as error:
        return f"it cannot run a graph that it took: {' '.join(str(error).split())[:300]}"
    off = float(np.abs(got - trial.y).max())
    return "" if off <= TOLERANCE else f"it computes wrongly: off by {off:.2g} where {TOLERANCE:g} would do"


def _costs(bundle: Bundle, device: Device, threads: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Of each part with weights of its own: seconds of a pass of one token and of several, or why it does not run
    there."""
    bundle = as_run(bundle, Places(device, device, device), "auto")
    parts: dict[str, Part] = {"target": bundle.manifest.target, **bundle.manifest.drafters}
    form, shared = cache_form(bundle.manifest, None), Shared(bundle)
    for name, part in parts.items():
        if part.kind in ("skip", "exit"):
            continue
        own = threads if name == "target" else draft_threads(part, threads)
        try:
            timed, widest = _timed(shared, part, form, device, own)
            warm(timed, widest)
            points = measure(timed, widest, _SECONDS).seconds
            yield name, {"one": line(points, 1), "wide": line(points, widest), "tokens": widest}
        except Error as error:
            yield name, {"problem": str(error)}


def _timed(shared: Shared, part: Part, form: CacheFormat, device: Device, threads: int) -> tuple[Probed, int]:
    """What is timed of a part, and its widest pass; of a head a draft, and its levels."""
    graph, _ = shared.runner(part, form, device, threads)
    model = Model(graph, part, min(part.context, _CONTEXT), WIDEST, cache=form)
    if part.kind != "head":
        return model, WIDEST
    head = Head(
        model, shared.bundle.draft_ids(part), lambda path: shared.graph(path, part, device, threads)[0]
    )
    return head, min(head.depths[-1], WIDEST)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
