"""Medusa (2401.10774) with one LM head for all levels: each guesses its token from the state alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from paceline.export.heads.config import HeadConfig
from paceline.export.training.heads.head import Lesson, OwnDrafts, at
from paceline.export.training.heads.layers import Rows


class Medusa(OwnDrafts):
    """No attention, no embedding: tokens are not looked at, neither read ones nor drafted ones."""

    embeds = False

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        if config.tied:
            raise ValueError("Medusa has no embedding to tie its LM head to")
        width = config.hidden
        self.levels = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(config.depth))
        for level in self.levels:
            nn.init.zeros_(level.weight)  # type: ignore[arg-type]

    def read(self, tokens: Tensor, features: Tensor, cache: Rows | None = None) -> tuple[Tensor, Rows | None]:
        """See `OwnDrafts.read`: there is no cache."""
        return self.fuse(features), None

    def level(
        self, number: int, state: Tensor, before: Tensor, drafted: Sequence[Tensor], cache: Rows | None
    ) -> tuple[Tensor, Rows | None]:
        """See `OwnDrafts.level`."""
        return state + F.silu(self.levels[number - 1](state)), None

    def states(self, lesson: Lesson) -> list[Tensor]:
        """See `DraftHead.states`."""
        state = self.fuse(at(lesson.features, lesson.anchors))
        few = state[:, : lesson.deep]
        return [
            self.level(number, state if number == 1 else few, state, (), None)[0]
            for number in range(1, lesson.depth + 1)
        ]
