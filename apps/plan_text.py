"""A memory plan in words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.memory.plan import Plan
    from paceline.runtime.bundle.bundle import Bundle
    from paceline.runtime.settings import Settings


def plan_lines(
    bundle: Bundle,
    made: Plan,
    guessed: Sequence[str],
    elsewhere: Sequence[str] = (),
    devices: Sequence[str] = (),
    mirror: Sequence[str] = (),
) -> list[str]:
    """All of a plan, a line for each part. guessed: the models that nothing was measured of.

    elsewhere: the skips whose prices are those of their search. devices: where parts run, a line each. mirror: of
    drafting beside the target, likewise.
    """
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
        f", draft cache of {choice.draft_rows} rows"
        if choice.room.models and choice.draft_rows < choice.context
        else ""
    )
    depth = f", {choice.room.depth} deep at most" if choice.room.nodes else ""
    facts = {
        "context": f"{choice.context} tokens, {choice.cache} cache; reads prompts {choice.chunk} tokens at a time",
        "drafting": f"{drafting_words(made)}{depth}{window}",
        "predicted": f"{made.gain:.2f} of plain decoding's speed{_rests_on(bundle, made)}{_prices_of(elsewhere)}",
        "least": f"{_mb(made.least)} runs at all; {_useful(made)}",
    }
    if guessed:
        known = "" if "target" in guessed else f"all but {', '.join(guessed)}"
        facts["measured"] = (
            f"{known or 'nothing yet'}: sessions and activations are estimates until the first run with --memory"
            f"{' that has room for it' if known else ''}"
        )
    more = [*(("mirror", line) for line in mirror), *(("device", line) for line in devices)]
    for name, fact in (*facts.items(), *more):
        shown += textwrap.wrap(f"  {name:<9} {fact}", 80, subsequent_indent=" " * 12)
    return shown


def mirror_words(settings: Settings, added: tuple[int, int]) -> list[str]:
    """What `--mirror auto` chose, and what drafting beside the target adds, as of `mirror_bytes`."""
    shown = [] if settings.mirrored is None else [f"auto: {settings.mirrored}"]
    if not settings.mirror:
        return shown
    rows, graph = added
    takes = [f"cache rows of draft passes beside the target take {_mb(rows)}"] if rows else []
    takes += [f"the target in two graphs takes about {_mb(graph)} more"] if settings.halved else []
    counted = f"{' and '.join(takes)}, counted above; " if takes else ""
    threads = f"the target has {settings.target_threads} of {settings.threads} threads"
    return [*shown, f"on, by {settings.branches}: {counted}{threads}"]


def plan_line(made: Plan) -> str:
    """What a session is about to be loaded with."""
    choice = made.choice
    return (
        f"{_mb(made.total)} of {_mb(made.budget or made.total)}, context {choice.context}, {choice.cache} cache, "
        f"drafting by {drafting_words(made)}"
    )


def drafting_words(made: Plan) -> str:
    """Who drafts, in words."""
    if not made.drafters:
        return "none, plain decoding"
    return f"{', '.join(made.drafters)}; up to {made.choice.room.nodes} tokens a round"


def _rests_on(bundle: Bundle, made: Plan) -> str:
    from paceline.runtime.drafters.names import parse

    known, parts = bundle.manifest.acceptance, bundle.manifest.drafters
    words = parse(",".join(made.drafters), parts).words if made.drafters else ()
    if all(word.text in known or (word.part and parts[word.part].accepted) for word in words):
        return ""
    return ", with a usual acceptance of drafts: 'paceline bench --record' measures this bundle's"


def _prices_of(elsewhere: Sequence[str]) -> str:
    if not elsewhere:
        return ""
    return (
        f"; what a pass of {', '.join(elsewhere)} costs is what its search measured, maybe on another machine"
    )


def _useful(made: Plan) -> str:
    if made.useful is None:
        return "speculation is not predicted to gain over 5 % here"
    return f"speculation is predicted to gain over 5 % from {_mb(made.useful)} on"


def megabytes(size: int) -> str:
    """Bytes in MB, rounded up to a tenth."""
    return f"{-(-size // 10**5) / 10:.1f}"


def _mb(size: int) -> str:
    return f"{megabytes(size)} MB"
