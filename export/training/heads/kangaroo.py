"""Kangaroo (2404.18911): a block of attention, between two norms, goes on from an early layer of the target.

Its LM head is rows of the target's and is not learnt. Level d of a draft reads what that layer says of the row of level
d - 1, which the target's own first layers compute of the drafted token: so all levels of all drafts are rows of one
pass over the text, and learning the first level is learning all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.export.heads.config import HeadConfig
from paceline.export.training.heads.head import DraftHead, Lesson, at
from paceline.export.training.heads.layers import Attention, Norm, Rows, attend


class Kangaroo(DraftHead):
    """Taps are its state as they are, and no token is looked at."""

    fuses, embeds = False, False

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        sizes = (config.heads, config.kv_heads, config.head_dim)
        self.layer = Attention(config.hidden, config.hidden, *sizes)
        self.state_norm, self.final_norm = (Norm(config.hidden, config.epsilon) for _ in range(2))
        self.head.requires_grad_(False)

    def rows(self, features: Tensor) -> tuple[Tensor, Rows]:
        """Of hidden states `[R, N, hidden]` of a text what attention reads, and keys and values."""
        x = self.state_norm(features)
        places = torch.arange(x.shape[1], device=x.device)
        return x, self.layer.rows(x, places, self.config.rope_theta)

    def behind(self, features: Tensor, x: Tensor, rows: Rows, places: Tensor) -> Tensor:
        """The states `[R, M, hidden]` of the rows at these places, `[R, M]`."""
        queries = self.layer.queries(at(x, places), places, self.config.rope_theta)
        seen = self.layer.o(attend(queries, rows, places))
        out: Tensor = self.final_norm(at(features, places) + seen)
        return out

    def states(self, lesson: Lesson) -> list[Tensor]:
        """See `DraftHead.states`."""
        features = lesson.features[:, :-1]
        x, rows = self.rows(features)
        found = []
        for number in range(1, lesson.depth + 1):
            anchors = lesson.anchors if number == 1 else lesson.anchors[:, : lesson.deep]
            found.append(self.behind(features, x, rows, (anchors + number).clamp(max=x.shape[1] - 1)))
        return found
