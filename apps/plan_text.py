"""A memory plan in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.memory.plan import Plan
    from paceline.runtime.bundle import Bundle


def plan_lines(bundle: Bundle, made: Plan, measured: bool) -> list[str]:
    """All of a plan, a line for each part."""
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


def plan_line(made: Plan) -> str:
    """What a session is about to be loaded with."""
    choice = made.choice
    nodes = f", up to {choice.nodes} tokens a round" if choice.nodes else ""
    return (
        f"plan: {_mb(made.total)} of {_mb(made.budget or made.total)}, context {choice.context}, {choice.cache} cache, "
        f"drafting by {drafting_words(made)}{nodes}"
    )


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
