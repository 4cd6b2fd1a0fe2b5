"""Hydra++ (2402.05109): a layer over what was read (prefix attention), then a level for each depth that sees the draft.

Level d maps the state and the embeddings of the d - 1 tokens drafted so far to a change of the state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paceline.export.heads.config import HeadConfig
from paceline.export.training.heads.head import Lesson, PairedHead, at
from paceline.export.training.heads.layers import Rows


class Level(nn.Linear):
    """state + out(SiLU(W [state, tokens])): `out` begins at 0, and so does the change."""

    def __init__(self, number: int, hidden: int) -> None:
        super().__init__(number * hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        nn.init.zeros_(self.out.weight)

    def changed(self, state: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        """state[.., hidden] after embedded tokens `[.., hidden]`."""
        out: Tensor = state + self.out(F.silu(self(torch.cat([state, *tokens], dim=-1))))
        return out


class Hydra(PairedHead):
    """A level for each depth, with weights of its own."""

    levels: nn.ModuleList

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.levels = nn.ModuleList(Level(d, config.hidden) for d in range(1, config.depth + 1))

    def level(
        self, number: int, state: Tensor, before: Tensor, drafted: Sequence[Tensor], cache: Rows | None
    ) -> tuple[Tensor, Rows | None]:
        """See `OwnDrafts.level`."""
        return self._changed(number, state, [self.embedded(token) for token in drafted]), cache

    def states(self, lesson: Lesson) -> list[Tensor]:
        """See `DraftHead.states`; every draft is fed the tokens of the text."""
        state, _ = self.base(lesson)
        states, tokens = [self._changed(1, state, [])], list[Tensor]()
        anchors, last = lesson.anchors[:, : lesson.deep], lesson.tokens.shape[1] - 1
        state = state[:, : lesson.deep]
        for number in range(2, lesson.depth + 1):
            tokens.append(self.embedded(at(lesson.tokens, (anchors + number).clamp(max=last))))
            states.append(self._changed(number, state, tokens))
        return states

    def _changed(self, number: int, state: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        level = self.levels[number - 1]
        assert isinstance(level, Level)
        return level.changed(state, tokens)
