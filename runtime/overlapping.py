"""Whether `--mirror auto` drafts beside the target: by what passes cost here, as measured once on a device, and by what
came of it in earlier answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from paceline.runtime.assemble import Workshop
from paceline.runtime.budget.planning import acceptance_of, draft_key, target_key
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.control.costs import remembered
from paceline.runtime.control.estimates import CostCurve
from paceline.runtime.control.overlap import HITS, pays
from paceline.runtime.drafters.names import Name
from paceline.runtime.experience import Journal
from paceline.runtime.loaded import Shared
from paceline.runtime.settings import Settings, needs

Seconds = Callable[[int], float]
"""Of a pass, by rows."""
_PAST = 128
"""Rows of the cache that costs are compared over."""


def overlap_pays(shared: Shared, settings: Settings, drafter: Name, measures: bool) -> bool:
    """Whether one of the draft models is predicted to bring more beside the target than before it.

    settings: with the mirror. measures: whether costs may be measured that nobody knows; where they may not, and are
    not known, it does not pay.
    """
    parts, models = (
        shared.bundle.manifest.drafters,
        needs(drafter, shared.bundle, settings, every=True).models,
    )
    names = [name for name in models if parts[name].kind == "decoder"]
    if not names:
        return False
    serial = replace(settings, mirror=False)
    found = [_costs(shared, s, names, measures) for s in (serial, settings)]
    if any(not costs for costs in found):
        return False
    together, alone = (costs["target"] for costs in found)
    seen = journal(shared.bundle, settings, drafter).read()
    slower = seen.slower(alone.seconds(round(seen.width), _PAST))
    return any(
        pays(
            lambda rows: together.seconds(rows, _PAST),
            lambda rows: slower * alone.seconds(rows, _PAST),
            found[1][name].seconds(1, _PAST),
            seen.chance(acceptance_of(shared.bundle, [name])),
            seen.hit(HITS[settings.branches]),
            seen.hidden,
        )
        for name in names
    )


def journal(bundle: Bundle, settings: Settings, drafter: Name) -> Journal:
    """Where experience with a drafter beside a target is kept, by where and over what both run."""
    models = needs(drafter, bundle, settings, every=True).models
    keys = [target_key(bundle, settings), *(draft_key(bundle, settings, name) for name in models)]
    return Journal(" ".join([settings.branches, drafter.text, *(key.text() for key in keys)]), drafter.text)


def _costs(shared: Shared, settings: Settings, names: list[str], measures: bool) -> dict[str, CostCurve]:
    """The curves of the target, `target`, and of draft models by name; none where one of them is not known."""
    keys = {"target": target_key(shared.bundle, settings)}
    keys |= {name: draft_key(shared.bundle, settings, name) for name in names}
    known = {name: remembered(key.text()) for name, key in keys.items()}
    curves = {name: CostCurve(points, points.seconds[-1][0]) for name, points in known.items() if points}
    if len(curves) == len(keys):
        return curves
    if not measures:
        return {}
    shop = Workshop(shared, settings)
    try:
        shop.target()
        return {"target": shop.costs(), **{name: shop.draft_costs(name) for name in names}}
    finally:
        shop.close()
