"""`paceline plan`: what a bundle takes within a budget, before anything is loaded."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from paceline.fit_table import fit_dicts, fit_lines
from paceline.flags import with_flags
from paceline.options import Drafting, JsonFlag, Loading, say_measuring
from paceline.plan_text import mirror_words, plan_lines
from paceline.printable import say, say_json

if TYPE_CHECKING:
    from paceline.memory.plan import Plan
    from paceline.runtime.bundle.bundle import Bundle
    from paceline.runtime.settings import Settings


@with_flags
def plan(*, as_json: JsonFlag = False, drafting: Drafting, loading: Loading) -> None:
    """Show what fits into --memory, part by part, and the least that runs; loads no weights."""
    from paceline.memory.budget import budget_of, resident
    from paceline.memory.plan import BudgetError
    from paceline.runtime.budget.fitting import fits
    from paceline.runtime.budget.planning import estimated, make_plan, mirror_bytes, priced_by_search
    from paceline.runtime.budget.pressure import give_back
    from paceline.runtime.drafters.names import parse
    from paceline.runtime.overlapping import mirrored
    from paceline.runtime.placement import settle
    from paceline.runtime.text.text import Text

    import_module("paceline.runtime.loading")  # a run has that in its memory too
    budget = None if loading.memory is None else budget_of(loading.memory, "process")
    bundle, settings = settle(
        loading.with_drafter(drafting.drafter, drafting.suffix_store), measuring=say_measuring
    )
    loading.say_if_lowered(bundle.manifest.target.context)
    text = Text.load(bundle.folder)  # what it takes is measured, not modelled
    name = parse(drafting.drafter, bundle.manifest.drafters)
    loading.say_unused([drafting.drafter], bundle.manifest.drafters, drafting.suffix_store)
    settings = mirrored(bundle, settings, name, loading.mirror)
    give_back()  # as loading does before it plans
    process = resident()
    found = fits(bundle, settings, name, budget, process)
    table = fit_lines(found, None if budget is None else budget.bytes, not name.plain)
    try:
        made = make_plan(bundle, settings, name, budget, process)
    except BudgetError:
        # What was asked does not fit; what else would is worth more than the error alone.
        if any(fit.largest for fit in found):
            refused = {
                "bundle": bundle.manifest.name,
                "budget_bytes": budget and budget.bytes,
                "planned_bytes": None,
            }
            if as_json:
                say_json(refused | {"caches": fit_dicts(found)})
            else:
                say(*table)
        raise
    guessed = estimated(bundle, settings, name, made)
    elsewhere = priced_by_search(bundle, settings, name, made)
    del text
    if as_json:
        shown = as_dict(bundle, settings, made, not guessed) | {"priced_by_search": elsewhere}
        say_json(shown | {"caches": fit_dicts(found)})
    else:
        beside = mirror_words(settings, mirror_bytes(bundle, settings, name, made))
        say(*plan_lines(bundle, made, guessed, elsewhere, device_words(bundle, settings), beside), "", *table)


def devices_of(bundle: Bundle, settings: Settings) -> dict[str, str]:
    """The devices of the target and of every part that could draft."""
    drafters = bundle.manifest.drafters.items()
    found = {"target": settings.places.target, **{name: settings.places.of(part) for name, part in drafters}}
    return {name: device.name for name, device in found.items()}


def device_words(bundle: Bundle, settings: Settings) -> list[str]:
    """Where `--device auto` put each part and why, else which parts run elsewhere than on the CPU."""
    if settings.reasons:
        return list(settings.reasons.values())
    away = [f"{name} on {device}" for name, device in devices_of(bundle, settings).items() if device != "cpu"]
    return [f"{', '.join(away)}: what it copies of the weights there stands under session"] if away else []


def as_dict(bundle: Bundle, settings: Settings, made: Plan, measured: bool) -> dict[str, Any]:
    """The object of `plan --json`."""
    choice = made.choice
    return {
        "bundle": bundle.manifest.name,
        "budget_bytes": made.budget,
        "planned_bytes": made.total,
        "least_bytes": made.least,
        "least_useful_bytes": made.useful,
        "predicted_gain": round(made.gain, 4),
        "measured_on_this_device": measured,
        "context": choice.context,
        "cache": choice.cache,
        "drafters": list(made.drafters),
        "nodes": choice.room.nodes,
        "depth": choice.room.depth,
        "draft_context": choice.draft_rows if choice.room.models else None,
        "prompt_chunk": choice.chunk,
        "threads": settings.threads,
        "devices": devices_of(bundle, settings),
        "placed": dict(settings.reasons),
        "mirror": settings.mirrored,
        "parts": [{"part": t.part, "what": t.what, "bytes": t.bytes} for t in made.terms],
    }
