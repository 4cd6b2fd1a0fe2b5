"""The acceptance rules by name."""

from __future__ import annotations

from functools import partial

from paceline.memory.errors import ArgumentError
from paceline.runtime.contracts import AcceptanceRule
from paceline.runtime.request import RULES, Request
from paceline.runtime.rules.laws import LawMaker
from paceline.runtime.rules.noise import GumbelNoise
from paceline.runtime.rules.rejection import BlockVerification, Rejection
from paceline.runtime.rules.typical import Typical
from paceline.runtime.rules.walk import Descend


def make_rule(request: Request) -> AcceptanceRule:
    """The rule a request asks for; at temperature 0 every name means the greedy walk.

    Raises ValueError for an unknown name and for sampling choices out of range.
    """
    if request.accept not in RULES:
        raise ArgumentError(f"unknown acceptance rule {request.accept!r}: choose one of {', '.join(RULES)}")
    maker = LawMaker(request.sampling, request.prompt_length)
    if request.sampling.temperature == 0:
        return Descend(maker.choice)
    if request.accept == "rejection":
        return Rejection(maker)
    if request.accept == "block":
        return BlockVerification(maker)
    if request.accept == "typical":
        return Typical(maker)
    return Descend(partial(maker.coupled, noise=GumbelNoise(request.seed, request.number)))
