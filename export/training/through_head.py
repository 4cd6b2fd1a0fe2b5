"""A loss over a vocabulary, some rows at a time: never is there more of logits than a few hundred rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROWS = 512
"""Rows of logits at a time: what a vocabulary's worth of them takes stays in the megabytes."""

LossOf = Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor]]
"""Of states [n, H], logits float32[n, V] and the slice that they are: the loss as it is told, and as it is learnt."""


def through_head(states: Tensor, head: Tensor, loss_of: LossOf) -> tuple[float, Tensor]:
    """The sum of a loss over states [N, H], and its gradient by them, [N, H].

    The gradient by the LM head [V, H] is added to it at once.
    """
    total, gradients = 0.0, list[Tensor]()
    for start in range(0, len(states), ROWS):
        part = slice(start, start + ROWS)
        leaf = states[part].detach().clone().requires_grad_()
        told, learnt = loss_of(leaf, (leaf @ head.T).float(), part)
        total += told.item()
        learnt.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    return total, torch.cat(gradients)
