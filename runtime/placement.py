"""Where parts run that `--device auto` may place: where they are fastest by what was measured, whole, and fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from textwrap import shorten

from paceline.memory.budget import Budget, budget_of
from paceline.memory.plan import BudgetError, Plan
from paceline.runtime.budget.libraries import recall_library
from paceline.runtime.budget.planning import make_plan
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.drafters.names import parse
from paceline.runtime.model.device import Device, devices_of, find_device
from paceline.runtime.model.ort import DeviceError
from paceline.runtime.model.providers import CPU, PROVIDERS, add_library
from paceline.runtime.options import Options
from paceline.runtime.places import AUTO, Places, places_of, words_of
from paceline.runtime.probing.costs import costs_on, timed_parts
from paceline.runtime.probing.trying import Cost, probed
from paceline.runtime.settings import Settings
from paceline.runtime.settle import opened, settled
from paceline.runtime.target import TARGET

_FASTER = 0.9
"""A part leaves the CPU for what takes so much of its time at most, however many tokens, and after whatever text."""
_SHOWN = 200
"""Characters of a cause at most, in whole words: what a driver says has no end."""
_PATH = r"(?<!\S)(?:[A-Za-z]:)?[\\/](?:.*?\.onnx|\S*?)(?=[:;,\s]|$)"
Costs = Mapping[str, Cost]
"""Of one part, by device, the CPU's first."""


def settle(
    options: Options, budget: Budget | None = None, measuring: Callable[[str], None] = lambda device: None
) -> tuple[Bundle, Settings]:
    """Open and verify the bundle, and settle how it is to run and where. `options.bundle` must be there.

    budget: what the plan has to hold; None: what `options.memory` says. Where there is one, what
    libraries of devices take is measured now, where nobody knows it. What nobody knows of the costs of parts that may
    be placed is measured, too; `measuring` is told on which device, before that begins.
    Raises BundleError (the bundle), ArgumentError (a choice), DeviceError (a device).
    """
    bundle, places = opened(options), places_of(options)
    parts = _placeable(options, bundle)
    if budget is None and options.memory is not None:
        budget = budget_of(options.memory, options.memory_scope)
    if budget is not None:
        for device in (places.target, places.draft, places.heads):
            if not device.on_cpu and recall_library(device.name) is None:
                probed(device.name, options.provider_library)
    if not parts:
        return settled(options, bundle, places)
    devices = {device.name: device for device in _devices(options.provider_library)}
    costs = _measured(options, bundle, parts, devices, measuring)
    reasons: dict[str, str] = {}
    for part in parts:
        chosen = fastest(costs[part])
        reasons[part] = reason(part, chosen, costs[part])
        if chosen == "cpu":
            continue
        moved = _moved(places, bundle, part, devices[chosen])
        if budget is None or _fits(options, bundle, budget, places, moved):
            places = moved
        else:
            reasons[part] = f"{part} on cpu: its copy of the weights on {chosen} does not fit the memory plan"
    bundle, settings = settled(options, bundle, places)
    return bundle, replace(settings, reasons=reasons)


def fastest(costs: Costs) -> str:
    """The device that a part runs on: the CPU, unless another one is faster in every way that was measured."""
    own = costs["cpu"]
    ratios = {name: _ratios(cost, own) for name, cost in costs.items() if name != "cpu"}
    better = {name: sum(found) for name, found in ratios.items() if found and max(found) <= _FASTER}
    return min(better, key=lambda name: better[name], default="cpu")


def _ratios(cost: Cost, own: Cost) -> list[float]:
    """Times of a device over those of the CPU; none where something is not known."""
    pairs = [
        (cost.one, own.one),
        (cost.wide, own.wide),
        (cost.far_one, own.far_one),
        (cost.far_wide, own.far_wide),
    ]
    if cost.problem or own.problem or not all(there > 0 and here > 0 for there, here in pairs):
        return []
    return [there / here for there, here in pairs]


def reason(part: str, chosen: str, costs: Costs) -> str:
    """Where a part runs and why, in one line."""
    if len(costs) == 1:
        return f"{part} on cpu: no other device runs here"
    told = [_told(name, cost) for name, cost in costs.items() if name != chosen]
    return f"{part} on {chosen}: {'; '.join([_told(chosen, costs[chosen]), *told])}"


def _told(name: str, cost: Cost) -> str:
    if cost.problem:
        return f"{name}: {cause(name, cost.problem)}"
    wide = f" and {cost.tokens} {1e3 * cost.wide:.2f} ms" if cost.tokens > 1 else ""
    return f"{name} takes {1e3 * cost.one:.2f} ms a token{wide}"


def cause(device: str, problem: str) -> str:
    """What keeps a part from a device: of an error neither its remedy nor paths, nor which nodes."""
    said = re.split(rf"; |: export the model|: run this part| of(?= {_PATH})", problem)[0]
    return shorten(re.sub(f" ?{_PATH}", "", said.removeprefix(f"{device} ")), _SHOWN, placeholder=" ...")


def _placeable(options: Options, bundle: Bundle) -> list[str]:
    """The parts that were left to `auto`: all that could draft, for a session may change its drafter."""
    target, draft, heads = words_of(options)
    drafters = bundle.manifest.drafters
    parse(options.drafter, drafters)  # what is wrong with it is said before anything is measured

    def asked(part: str) -> str:
        if part == TARGET:
            return target
        return heads if drafters[part].kind == "head" else draft

    return [part for part in timed_parts(bundle) if asked(part) == AUTO]


def _devices(library: str | None) -> list[Device]:
    """The CPU, and every other device that is here. library: NAME=PATH of the user's own, which may end the process."""
    found, providers = [find_device("cpu")], [p for p in PROVIDERS.values() if p is not CPU]
    if library is not None and not probed((own := add_library(library)).word, library).problem:
        providers.append(own)
    for provider in providers:
        try:
            found += devices_of(provider)
        except DeviceError:
            continue
    return found


def _measured(
    options: Options,
    bundle: Bundle,
    parts: list[str],
    devices: Mapping[str, Device],
    measuring: Callable[[str], None],
) -> dict[str, dict[str, Cost]]:
    """The costs of parts, by part and device. With no other device than the CPU nothing is measured."""
    costs: dict[str, dict[str, Cost]] = {part: {"cpu": Cost()} for part in parts}
    if len(devices) == 1:
        return costs
    for name, device in devices.items():
        problem = "" if device.on_cpu else probed(name, options.provider_library).problem
        beyond = {part: found["cpu"].one for part, found in costs.items() if found["cpu"].one}
        found = {part: Cost(problem=problem) for part in parts}
        if not problem:
            found = costs_on(device, options, bundle, parts, beyond, measuring)
        for part, cost in found.items():
            costs[part][name] = cost
    return costs


def _moved(places: Places, bundle: Bundle, part: str, device: Device) -> Places:
    """The same places with one part on another device."""
    if part == TARGET:
        return replace(places, target=device)
    return replace(places, apart={**places.apart, bundle.manifest.drafters[part].graph: device})


def _fits(options: Options, bundle: Bundle, budget: Budget, places: Places, moved: Places) -> bool:
    """Whether the plan holds with a part elsewhere, and drafts as it would without that."""
    before, after = (_planned(options, bundle, budget, where) for where in (places, moved))
    if before is None or after is None:
        return after is not None
    there, here = after.choice.room, before.choice.room
    return there.models >= here.models and there.nodes >= here.nodes and there.depth >= here.depth


def _planned(options: Options, bundle: Bundle, budget: Budget, places: Places) -> Plan | None:
    run, settings = settled(options, bundle, places)
    try:
        return make_plan(run, settings, parse(options.drafter, run.manifest.drafters), budget)
    except BudgetError:
        return None
