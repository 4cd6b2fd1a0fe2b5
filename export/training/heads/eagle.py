"""EAGLE-1 (2401.15077): one layer guesses the target's next last state, from which the target's LM head says a token.

Its embedding and LM head are rows of the target's and are not learnt. What it reads is disturbed while it learns, for
in use it reads its own guesses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paceline.export.heads.config import HeadConfig
from paceline.export.training.heads.eagle3 import Chain

_NOISE = 0.1
"""Of the size of a state, at most: as the paper has it for states of about size 1."""


class Eagle(Chain):
    """The layer reads, and adds to, one matrix of the embedding and the state; there are no norms but the MLP's."""

    fuses = False

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.fc = nn.Linear(2 * config.hidden, config.hidden)
        self.embed.requires_grad_(False)
        if not config.tied:
            self.head.requires_grad_(False)

    def enter(self, tokens: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentiveHead.enter`."""
        x = self.fc(torch.cat((self.embedded(tokens), given), dim=-1))
        return x, x

    def disturbed(self, features: Tensor, chance: torch.Generator) -> Tensor:
        """See `DraftHead.disturbed`: noise of a uniform law."""
        noise = torch.rand(features.shape, generator=chance).to(features.device)
        return features + (2 * noise - 1) * (_NOISE * _size(features))

    def apart(self, states: Tensor, hidden: Tensor) -> Tensor:
        """See `DraftHead.apart`: smooth L1, in sizes of the target's state."""
        size = _size(hidden)
        return F.smooth_l1_loss(states / size, hidden / size, reduction="none").mean(-1)


def _size(states: Tensor) -> Tensor:
    """Root of the mean square, `[.., 1]`; 1 for rows of zeros."""
    mean = states.square().mean(-1, keepdim=True)
    return torch.where(mean > 0, mean, 1.0).sqrt()
