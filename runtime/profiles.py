"""Which graphs of a part run: on accelerators the static ones, where it has them, elsewhere its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import msgspec

from paceline.memory.errors import ArgumentError
from paceline.runtime.buckets import SPARE
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import Device
from paceline.runtime.places import Places

Profile = Literal["auto", "static"]
_FREE = ("cpu", "cuda")
"""Devices that run graphs of any size as well."""


def as_run(bundle: Bundle, places: Places, profile: Profile) -> Bundle:
    """The bundle with every part as it will run: of one that has static graphs these alone, or all but these.

    Skips and exits run over the cache of the target's own graph, so beside static graphs of the target there are none.
    Raises ArgumentError where static graphs were asked for and no part has them.
    """
    manifest = bundle.manifest
    parts = (manifest.target, *manifest.drafters.values())
    if profile == "static" and all(part.static is None for part in parts):
        raise ArgumentError(
            f"{bundle.folder} has no static graphs: export the model with --profile static, or leave --profile out"
        )
    target = _chosen(manifest.target, places.target, profile)
    drafters = {
        name: _chosen(part, places.of(part), profile)
        for name, part in manifest.drafters.items()
        if target.static is None or part.kind not in ("skip", "exit")
    }
    return replace(bundle, manifest=msgspec.structs.replace(manifest, target=target, drafters=drafters))


def with_free_target(bundle: Bundle) -> Bundle:
    """The same with the target's graph of free sizes, which the CPU runs."""
    target = msgspec.structs.replace(bundle.manifest.target, static=None)
    return replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, target=target))


def _chosen(part: Part, device: Device, profile: Profile) -> Part:
    if part.static is None:
        return part
    if profile == "auto" and device.runs.word in _FREE:
        return msgspec.structs.replace(part, static=None)
    context = min(part.context, part.static.contexts[-1] - SPARE)
    layout = part.layout if part.static.weights is None else None
    return msgspec.structs.replace(part, context=context, caches={}, drafts={}, split=None, layout=layout)
