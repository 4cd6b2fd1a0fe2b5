"""A simulated machine and text for the controller: costs and acceptance are given, time passes only in its books."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from paceline.runtime.contracts import DraftLimit, Outcome, Round, Scored, Verdict
from paceline.runtime.control.controller import Controller
from paceline.runtime.control.costs import Points
from paceline.runtime.control.estimates import Arm, CostCurve
from paceline.runtime.control.policy import Trial
from paceline.runtime.request import Request, Sampling
from paceline.runtime.tree import TokenTree

GREEDY = Request(Sampling(), "coupled", 0, 0, 10)
STEPS = {"chain": 0.1, "lookup": 0.01, "tree": 0.4, "chain,lookup": 0.12, "none": 0.0}
"""Seconds of a draft pass, or of a lookup; a plain pass takes one second."""
ONE = Scored(np.zeros((1, 4), np.float32))


def passes(width: int) -> float:
    """Seconds of a pass: nearly free up to four rows, dear from eight on."""
    return 1.0 + 0.03 * (width - 1) + 0.15 * max(width - 4, 0)


def curve(widest: int = 17) -> CostCurve:
    points = tuple((w, passes(w)) for w in (1, 2, 3, 4, 6, 8, 12, 16, 17) if w <= widest)
    return CostCurve(Points(16, points, ((1, 0.0),)), widest)


def arms(*names: str) -> list[Arm]:
    made = []
    for name in names:
        models = name != "lookup"
        step = STEPS[name] if models else 0.0
        members = tuple(name.split(",")) if "," in name else ()
        made.append(Arm(name, 8, "small" if models else None, step, 0.01, catch_up=0.002, members=members))
    return made


@dataclass
class World:
    """chance: acceptance of the next token by arm and place in the text. slow: how much slower the machine is now."""

    chance: Callable[[str, int], float]
    slow: Callable[[int], float] = lambda at: 1.0
    noise: float = 0.05
    seed: int = 0
    spent: float = 0.0
    lost: float = 0.0
    """Seconds lost while something was only tried, against the one that it was tried against."""
    ran: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def answer(self, control: Controller, tokens: int, request: Request = GREEDY) -> list[float]:
        """The time at which each token came out, from 0 on."""
        control.begin(request, 0)
        times: list[float] = []
        now = 0.0
        while len(times) < tokens:
            name = control._state.arm.name
            self.ran[name] = self.ran.get(name, 0) + 1
            at = len(times)
            p = self.chance(name, at)
            depth = self.depth(control.limit(tokens - at - 1), p)
            noise = float(np.exp(self._rng.normal() * self.noise)) * self.slow(at)
            count = max(depth, 1) if name in ("chain", "tree", "chain,lookup") else name != "none"
            draft = STEPS[name] * count * noise
            verify = passes(1 + depth) * noise
            accepted = 0
            while accepted < depth and self._rng.random() < p:
                accepted += 1
            verdict = Verdict(tuple(range(accepted + 1)), 0, min(accepted + 1, depth))
            trying, home = isinstance(control._state, Trial), control._state.home.name
            outcome = Outcome(TokenTree.chain([0] * (1 + depth), name), ONE, verdict)
            control.learn(Round(outcome, draft, verify, 0.0))
            now += draft + verify
            if trying and at >= 64:
                self.lost += draft + verify - (accepted + 1) * self.best_known(home, at) * self.slow(at)
            times += [now] * (accepted + 1)
        control.finish()
        return times[:tokens]

    def depth(self, limit: DraftLimit, p: float) -> int:
        """A drafter that knows its chances."""
        depth = 0
        while depth < min(limit.depth, limit.nodes):
            chance = p ** (depth + 1)
            if chance < limit.price(depth + 1) or (
                depth and chance < limit.step_price + limit.price(depth + 1)
            ):
                break
            depth += 1
        return depth

    def best_known(self, name: str, at: int) -> float:
        """Seconds a token of an arm at its best fixed depth."""
        return 1.0 if name == "none" else best_fixed([name], lambda n: self.chance(n, at))


def best_fixed(names: Sequence[str], chance: Callable[[str], float]) -> float:
    """Seconds a token of the best drafter and depth, plain decoding included."""
    found = [1.0]
    for name in names:
        p = chance(name)
        for depth in range(1, 9):
            tokens = sum(p**level for level in range(depth + 1))
            drafting = STEPS[name] * (depth if name != "lookup" else 1)
            found.append((drafting + passes(1 + depth)) / tokens)
    return min(found)
