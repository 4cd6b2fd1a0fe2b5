"""The graph contract of a training step of a draft model's adapters."""

from __future__ import annotations

from typing import Literal

from paceline.runtime.manifest import Part
from paceline.runtime.model.graph import Shape
from paceline.runtime.part import WINDOW

LIKELIEST = 16
"""Tokens of the target's law that a step is told."""
MOMENTS = ("first", "second")
"""Of the optimiser (Adam, 1412.6980)."""
PREDICTOR = "adapter.odds"
"""The adapter that predicts acceptance, where there is one."""


def groups(part: Part) -> int:
    """How many rates a step has: that of the adapters, and that of what predicts acceptance."""
    return 1 if part.predictor is None else 2


def sample_shapes() -> dict[str, tuple[Literal["int64", "float32"], tuple[int, ...]]]:
    """Type and shape of what a step learns from, a row for each token.

    token_ids: a text in the draft model's tokens; past_len: 0, nothing stands before it. ids, probs: the likeliest
    tokens after each row as the target has it, in the draft model's vocabulary; a chance of 0 is an unused place.
    weight: how much that law counts. label: the token that follows, where it is one of several that spell a token of
    the target; label_weight: how much that counts.
    """
    return {
        "token_ids": ("int64", (WINDOW,)),
        "past_len": ("int64", (1,)),
        "ids": ("int64", (WINDOW, LIKELIEST)),
        "probs": ("float32", (WINDOW, LIKELIEST)),
        "weight": ("float32", (WINDOW,)),
        "label": ("int64", (WINDOW,)),
        "label_weight": ("float32", (WINDOW,)),
    }


def step_contract(part: Part) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Inputs and outputs of the step of a part: adapters and moments as they are, a sample, and for each of its groups
    the number of the step (from 1) and the rate, with a rate of 0 it stays as it is; new adapters and moments, and the
    loss of the adapters before the step.
    """
    inputs: dict[str, Shape] = {name: shape for name, (_, shape) in sample_shapes().items()}
    outputs: dict[str, Shape] = {"loss": (1,)}
    for name, sizes in part.adapters.items():
        for kind in ("", *(f"{moment}." for moment in MOMENTS)):
            inputs[f"{kind}{name}"] = outputs[f"new.{kind}{name}"] = tuple(sizes)
    return inputs | {"step": (groups(part),), "rate": (groups(part),)}, outputs
