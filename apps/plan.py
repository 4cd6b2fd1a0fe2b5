"""`paceline plan`: what a bundle takes within a budget, before anything is loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from paceline.flags import with_flags
from paceline.options import Drafting, JsonFlag, Loading

if TYPE_CHECKING:
    from paceline.memory.plan import Plan
    from paceline.runtime.assemble import Settings
    from paceline.runtime.bundle import Bundle


@with_flags
def plan(*, as_json: JsonFlag = False, drafting: Drafting, loading: Loading) -> None:
    """Show what fits into --memory, part by part, and the least that runs; loads no weights."""
    import paceline.runtime.engine  # noqa: F401  (counts as the process that will run)
    from paceline.embedded import embedded_bundle
    from paceline.runtime.planning import budget_of, make_plan, measured_before
    from paceline.runtime.settle import settle
    from paceline.runtime.text import Text

    budget = None if loading.memory is None else budget_of(loading.memory, "process", 0)
    bundle, settings = settle(loading.bundle or embedded_bundle(), **loading.settled(drafting.suffix_store))
    text = Text.load(bundle.folder)  # what it takes is measured, not modelled
    made = make_plan(bundle, settings, drafting.drafter, budget)
    measured = measured_before(bundle, settings, drafting.drafter)
    del text
    if as_json:
        print(json.dumps(as_dict(bundle, settings, made, measured)))
    else:
        print(*lines(bundle, settings, made, measured), sep="\n")


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
        "drafting": drafting_words(made),
        "nodes": choice.nodes,
        "depth": choice.depth,
        "draft_context": choice.draft_rows if choice.model else None,
        "prompt_chunk": choice.chunk,
        "threads": settings.threads,
        "parts": [{"part": t.part, "what": t.what, "bytes": t.bytes} for t in made.terms],
    }


def lines(bundle: Bundle, settings: Settings, made: Plan, measured: bool) -> list[str]:
    """The same as text."""
    choice = made.choice
    head = (
        "no budget given: everything at its full size"
        if made.budget is None
        else f"budget {_mb(made.budget)}"
    )
    shown = [f"{bundle.manifest.name}, {head}", ""]
    part = ""
    for term in made.terms:
        name, part = ("" if term.part == part else term.part), term.part
        shown.append(f"  {name:<9} {term.what:<40} {_mb(term.bytes):>10}")
    shown += [f"  {'total':<9} {'of the whole process at its highest':<40} {_mb(made.total):>10}", ""]
    window = (
        f", its cache {choice.draft_rows} rows" if choice.model and choice.draft_rows < choice.context else ""
    )
    drafted = f", up to {choice.nodes} tokens a round, {choice.depth} deep" if choice.nodes else ""
    shown += [
        f"  context   {choice.context} tokens, {choice.cache} cache; reads prompts {choice.chunk} tokens at a time",
        f"  drafting  {drafting_words(made)}{drafted}{window}",
        f"  predicted {made.gain:.2f} of plain decoding's speed",
        f"  least     {_mb(made.least)} runs at all; {_useful(made)}",
    ]
    if not measured:
        shown.append(
            "  The session and activation lines are estimates until this bundle was first run with --memory here."
        )
    return shown


def drafting_words(made: Plan) -> str:
    """Who drafts, in words."""
    choice = made.choice
    ways = (["a draft model"] if choice.model else []) + (["drafters without a model"] if choice.free else [])
    return " and ".join(ways) or "none, plain decoding"


def _useful(made: Plan) -> str:
    if made.useful is None:
        return "speculation is not predicted to gain over 5 % here"
    return f"speculation is predicted to gain over 5 % from {_mb(made.useful)} on"


def _mb(size: int) -> str:
    return f"{-(-size // 10**5) / 10:.1f} MB"
