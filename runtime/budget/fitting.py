"""Which contexts and forms of cache fit a budget: asks the planner that loading asks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from paceline.memory.budget import Budget
from paceline.memory.cache import CacheFormat
from paceline.memory.plan import SLACK, Plan
from paceline.runtime.budget.planning import estimated, least_bytes, make_plan
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.bundle.precision import forms_of
from paceline.runtime.drafters.names import Name
from paceline.runtime.settings import Settings

_FIRST, _FEWEST = 512, 2
"""Tokens: the shortest context that is shown of a model that has much longer ones, and the shortest that loads."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One context. plan: how it would run, None where it does not fit. least: bytes of the smallest way to run it."""

    context: int
    plan: Plan | None
    least: int


@dataclass(frozen=True, slots=True)
class Fit:
    """One form of cache. largest: the longest context that fits, None where none does; the model's without a budget.

    guessed: the models that nothing was measured of in this form.
    """

    cache: CacheFormat
    largest: int | None
    rungs: tuple[Rung, ...]
    guessed: tuple[str, ...]


def fits(bundle: Bundle, settings: Settings, drafter: Name, budget: Budget | None, process: int) -> list[Fit]:
    """Every form of cache that the bundle offers, the most exact first, at contexts up to the model's.

    What is said to fit leaves half a megabyte, by which another process may be larger. process: bytes resident before
    the bundle.
    """
    kept = budget and Budget(budget.bytes - SLACK, budget.start)
    return [
        _fit(bundle, replace(settings, cache=form), drafter, kept, process)
        for form in forms_of(bundle.manifest)
    ]


def _fit(bundle: Bundle, settings: Settings, drafter: Name, budget: Budget | None, process: int) -> Fit:
    most = bundle.manifest.target.context

    def least(context: int) -> int:
        return least_bytes(bundle, replace(settings, context=context), drafter, process)

    def too_large(context: int) -> bool:
        return budget is not None and least(context) > budget.total

    def rung(context: int) -> Rung:
        plan = None
        if not too_large(context):
            plan = make_plan(bundle, replace(settings, context=context), drafter, budget, process)
        return Rung(context, plan, least(context))

    found = tuple(rung(context) for context in sorted({*_ladder(most), settings.context}))
    fitting = bisect_left(range(_FEWEST, most + 1), True, key=too_large)
    plans = (r.plan for r in found if r.plan is not None)
    plan = next(plans, None) or make_plan(bundle, settings, drafter, None, process)
    guessed = estimated(bundle, settings, drafter, plan)
    return Fit(settings.cache, _FEWEST - 1 + fitting if fitting else None, found, tuple(guessed))


def _ladder(most: int) -> Iterator[int]:
    """Powers of two, and the model's own context."""
    now = min(_FIRST, 2 ** (max(most // 4, _FEWEST).bit_length() - 1))
    while now < most:
        yield now
        now *= 2
    yield most
