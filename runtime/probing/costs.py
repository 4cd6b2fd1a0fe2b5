"""What passes of a bundle's parts cost on a device: measured once, in a process of its own, then kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite

from paceline.memory.errors import Error
from paceline.runtime.budget.planning import draft_key, target_key
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.bundle.measurements import keep_all, read_all
from paceline.runtime.model.device import Device
from paceline.runtime.options import Options
from paceline.runtime.places import Places
from paceline.runtime.probing.trying import Asked, Cost, run_child
from paceline.runtime.settings import Settings
from paceline.runtime.settle import settled
from paceline.runtime.target import TARGET

_FILE = "places.json"
_KEPT = 300


def timed_parts(bundle: Bundle) -> list[str]:
    """The parts that run on a device of their own: the target, and what does not draft with its layers."""
    return [TARGET, *(n for n, part in bundle.manifest.drafters.items() if part.kind not in ("skip", "exit"))]


def costs_on(
    device: Device,
    options: Options,
    bundle: Bundle,
    parts: Sequence[str],
    beyond: Mapping[str, float] | None = None,
    measuring: Callable[[str], None] = lambda device: None,
    again: bool = False,
) -> dict[str, Cost]:
    """The costs of some parts of a bundle, opened as the options say, by name. beyond: see Asked. again: all anew.

    measuring: is told the device before anything is measured there.

    Kept is what was measured, what a device does not take, and that it ended the process; not what a user may have put
    right the next time.
    """
    try:
        run, settings = settled(options, bundle, Places(device, device, device))
    except Error as error:
        return {part: Cost(problem=str(error)) for part in parts}
    found = {part: Cost(problem=lack) for part in parts if (lack := _lacking(part, options, bundle, run))}
    keys = {part: _key(run, settings, part) for part in parts if part not in found}
    known = {} if again else read_all(_FILE)
    found |= {part: cost for part, key in keys.items() if (cost := _parsed(known.get(key))) is not None}
    rest = [part for part in parts if part not in found]
    if rest:
        measuring(device.name)
        told = run_child(Asked(device.name, options.provider_library, options, rest, beyond or {}))
        new = {part: told.costs.get(part) or Cost(problem=told.problem) for part in rest}
        if told.costs or told.ended:
            keep_all(_FILE, {keys[part]: asdict(cost) for part, cost in new.items()}, _KEPT)
        found |= new
    return found


def _key(bundle: Bundle, settings: Settings, part: str) -> str:
    key = target_key(bundle, settings) if part == TARGET else draft_key(bundle, settings, part)
    return f"{key.text()} {settings.context}"


def _lacking(part: str, options: Options, bundle: Bundle, run: Bundle) -> str:
    """What a part would lose of what it is on the CPU, "" where nothing. run: the bundle as it runs there."""
    if part != TARGET:
        return "" if part in run.manifest.drafters else "it runs where the target does"
    own, there = bundle.manifest.target.context, run.manifest.target.context
    if there < min(own, options.context or own):
        return f"its graphs read {there} tokens of the {own} there"
    if run.manifest.drafters.keys() != bundle.manifest.drafters.keys():
        return "its graphs there have no skips and exits"
    return ""


def _parsed(value: object) -> Cost | None:
    """What was kept, None for what makes no sense."""
    try:
        cost = Cost(**value) if isinstance(value, dict) else None
    except TypeError:
        return None
    if cost is None or not isinstance(cost.problem, str):
        return None
    seconds = (cost.one, cost.wide, cost.far_one, cost.far_wide)
    good = all(type(s) in (int, float) and isfinite(s) and 0 <= s < 1e4 for s in seconds)
    return cost if good and type(cost.tokens) is int and (cost.one > 0 or cost.problem) else None
