"""Whether `--mirror auto` drafts beside the target: by what passes cost here, as measured once on a device, and by what
came of it in earlier answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from paceline.runtime.assemble import Workshop
from paceline.runtime.budget.planning import acceptance_of, draft_key, target_key
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.control.costs import remembered
from paceline.runtime.control.estimates import CostCurve
from paceline.runtime.control.overlap import HITS, MARGIN, gain
from paceline.runtime.drafters.names import Name, stays_behind
from paceline.runtime.experience import Journal
from paceline.runtime.loaded import Shared
from paceline.runtime.settings import Settings, needs

_PAST = 128
"""Rows of the cache that costs are compared over."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether to draft beside the target, and why."""

    pays: bool
    why: str

    @property
    def line(self) -> str:
        """Both in words."""
        return f"{'on' if self.pays else 'off'}, {self.why}"


def mirrored(
    bundle: Bundle, settings: Settings, drafter: Name, wish: str, shared: Shared | None = None
) -> Settings:
    """The settings as `--mirror` wishes: of `auto` the mirror is off unless it pays. shared: see `chosen`."""
    if wish != "auto" or not settings.mirror:
        return settings
    found = chosen(bundle, settings, drafter, shared)
    return replace(settings, mirror=found.pays, mirrored=found.line)


def chosen(bundle: Bundle, settings: Settings, drafter: Name, shared: Shared | None = None) -> Choice:
    """Whether one of the draft models is predicted to bring more beside the target than before it.

    settings: with the mirror. shared: over what costs are measured that nobody knows; None: nothing is measured.
    """
    parts, models = bundle.manifest.drafters, needs(drafter, bundle, settings, every=True).models
    if (behind := stays_behind(drafter.text, parts)) is not None:
        return Choice(False, f"{drafter.text} {behind}")
    names = [name for name in models if parts[name].kind == "decoder"]
    if not names:
        return Choice(False, "what a head brings there is not predicted")
    serial = replace(settings, mirror=False)
    found = [_costs(bundle, s, names, shared) for s in (serial, settings)]
    if any(not costs for costs in found):
        return Choice(False, "what passes cost is not known yet, and --memory and plan measure nothing")
    together, alone = (costs["target"] for costs in found)
    seen = journal(bundle, settings, drafter).read()
    slower = seen.slower(alone.seconds(round(seen.width), _PAST))
    hit = seen.hit(HITS[settings.branches])
    chances = {name: seen.chance(acceptance_of(bundle, [name])) for name in names}
    gains = {
        name: gain(
            lambda rows: together.seconds(rows, _PAST),
            lambda rows: slower * alone.seconds(rows, _PAST),
            found[1][name].seconds(1, _PAST),
            chance,
            hit,
            seen.hidden,
        )
        for name, chance in chances.items()
    }
    best = max(gains, key=gains.__getitem__)
    return Choice(
        gains[best] > MARGIN,
        f"predicted {gains[best]:.2f} times drafting before the target, by {best}; {MARGIN} is needed "
        f"(hits {hit:.0%}, accepted {chances[best]:.0%}: {seen.source})",
    )


def journal(bundle: Bundle, settings: Settings, drafter: Name) -> Journal:
    """Where experience with a drafter beside a target is kept, by where and over what both run."""
    models = needs(drafter, bundle, settings, every=True).models
    keys = [target_key(bundle, settings), *(draft_key(bundle, settings, name) for name in models)]
    return Journal(" ".join([settings.branches, drafter.text, *(key.text() for key in keys)]), drafter.text)


def _costs(
    bundle: Bundle, settings: Settings, names: list[str], shared: Shared | None
) -> dict[str, CostCurve]:
    """The curves of the target, `target`, and of draft models by name; none where one of them is not known."""
    keys = {"target": target_key(bundle, settings)}
    keys |= {name: draft_key(bundle, settings, name) for name in names}
    known = {name: remembered(key.text()) for name, key in keys.items()}
    curves = {name: CostCurve(points, points.seconds[-1][0]) for name, points in known.items() if points}
    if len(curves) == len(keys):
        return curves
    if shared is None:
        return {}
    shop = Workshop(shared, settings)
    try:
        shop.target()
        return {"target": shop.costs(), **{name: shop.draft_costs(name) for name in names}}
    finally:
        shop.close()
