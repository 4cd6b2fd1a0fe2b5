from __future__ import annotations

import numpy as np
import pytest

from paceline.runtime.contracts import DraftLimit, Outcome, Request, Scored, Verdict
from paceline.runtime.control import FixedLimit, PayingDrafter
from paceline.runtime.sampling import Sampling
from paceline.runtime.tree import TokenTree


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A drafter that proposes a chain of its own length and counts how often it is run and fed."""

    needs: frozenset[str] = frozenset()

    def __init__(self, name: str, length: int) -> None:
        self.name, self.length, self.ran, self.fed = name, length, 0, 0

    def footprint(self, limit: DraftLimit) -> int:
        return 1

    def begin(self, request: Request) -> None: ...

    def propose(self, tokens: list[int], limit: DraftLimit) -> TokenTree:
        self.ran += 1
        return TokenTree.chain([tokens[-1], *range(min(self.length, limit.depth))], self.name)

    def observe(self, outcome: Outcome) -> None:
        self.fed += 1

    def reset(self) -> None: ...


def play(
    guard: PayingDrafter, clock: Clock, cost: dict[str, float], yields: dict[str, int], tokens: int
) -> float:
    """Run until `tokens` are out; returns the seconds it took."""
    begun, out = clock.now, 0
    while out < tokens:
        tree = guard.propose([1], DraftLimit(16, 8))
        name = guard.chosen
        path = tuple(range(min(yields[name], len(tree))))
        clock.now += cost[name]
        guard.observe(
            Outcome(tree, Scored(np.zeros((len(tree), 4), np.float32)), Verdict(path, 0, len(tree) - 1))
        )
        out += len(path)
    return clock.now - begun


def guard_of(clock: Clock) -> tuple[PayingDrafter, Fake, Fake]:
    plain, chain = Fake("none", 0), Fake("chain", 4)
    return PayingDrafter(plain, [(chain, 4)], clock), plain, chain


def test_a_drafter_that_does_not_pay_costs_under_two_percent_after_the_first_tokens() -> None:
    clock = Clock()
    guard, _, _ = guard_of(clock)
    cost, yields = {"none": 1.0, "chain": 1.3}, {"none": 1, "chain": 1}
    play(guard, clock, cost, yields, 64)
    assert play(guard, clock, cost, yields, 512) <= 512 * 1.02


def test_a_drafter_that_pays_is_used_nearly_always() -> None:
    clock = Clock()
    guard, plain, chain = guard_of(clock)
    cost, yields = {"none": 1.0, "chain": 1.5}, {"none": 1, "chain": 3}
    best = 2000 * 1.5 / 3
    assert play(guard, clock, cost, yields, 2000) < best * 1.05
    assert chain.ran > 10 * plain.ran


def test_a_drafter_that_starts_to_pay_later_is_found_again() -> None:
    clock = Clock()
    guard, _, _ = guard_of(clock)
    cost = {"none": 1.0, "chain": 1.5}
    play(guard, clock, cost, {"none": 1, "chain": 1}, 300)
    play(guard, clock, cost, {"none": 1, "chain": 4}, 1500)
    assert guard.chosen == "chain"


def test_a_drafter_that_is_off_is_neither_run_nor_fed() -> None:
    clock = Clock()
    guard, _, chain = guard_of(clock)
    play(guard, clock, {"none": 1.0, "chain": 9.0}, {"none": 1, "chain": 1}, 2000)
    assert chain.ran == chain.fed < 80


@pytest.mark.parametrize("accept", ["rejection", "block", "typical"])
def test_where_the_draft_changes_the_tokens_the_clock_decides_nothing(accept: str) -> None:
    clock = Clock()
    guard, plain, _ = guard_of(clock)
    guard.begin(Request(Sampling(temperature=1.0), accept, 1, 0, 1))
    play(guard, clock, {"none": 1.0, "chain": 9.0}, {"none": 1, "chain": 1}, 500)
    assert plain.ran == 0


def test_the_limit_never_drafts_past_the_room() -> None:
    control = FixedLimit(16, 6)
    assert control.limit(100) == DraftLimit(16, 6)
    assert control.limit(2).depth == 2
    assert control.limit(0) == DraftLimit(0, 0)
