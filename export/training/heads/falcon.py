"""Falcon (2412.12639), semi-autoregressive: a step drafts TOGETHER levels at once, and several steps follow each other.

A step reads the pairs of state and token of the levels before, as many as it drafts. A cell with the gates of an LSTM,
which see its inputs alone, runs over the pairs and on from step to step; each pair is given what the cell holds after
all of the step. Then the layer that reads the text attends, by a mask that is relaxed: rows of one step see each other,
later ones too. The first level is read; beside it, where no token is known yet, stands a mask.

Learnt with glances, a simple form of coupled sequential glancing: some drafts get to see the token of the text in place
of the mask, the more of them the more first levels are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from paceline.export.heads.config import TOGETHER, HeadConfig
from paceline.export.training.heads.head import Lesson, PairedHead, at
from paceline.export.training.heads.layers import Rows, attend

_GLANCES = 0.5
"""So many drafts see a token of the text for each one whose first level is wrong."""


class _Text(NamedTuple):
    """What drafts attend to: rows of the text `[R, L, ..]`, and the last one that each draft sees, `[R, M]`."""

    rows: Rows
    last: Tensor


class Falcon(PairedHead):
    """A layer as EAGLE-3 has it, and a cell."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        width = config.hidden
        self.mask = nn.Parameter(torch.zeros(width))
        self.cell = nn.Linear(2 * width, 3 * width, bias=False)
        nn.init.zeros_(self.cell.weight[:width])  # a new cell holds nothing

    def level(
        self, number: int, state: Tensor, before: Tensor, drafted: Sequence[Tensor], cache: Rows | None
    ) -> tuple[Tensor, Rows | None]:
        """See `OwnDrafts.level`; all levels so far are computed for one."""
        assert cache is not None
        last = torch.full((1, 1), len(cache.keys) - 1, device=state.device)
        text = _Text(Rows(cache.keys[None], cache.values[None]), last)
        tokens = [self.embedded(token)[None, None] for token in drafted]
        return self._levels(state[None, None], text, tokens, self.mask[None, None], number)[-1][0, 0], cache

    def states(self, lesson: Lesson) -> list[Tensor]:
        """See `DraftHead.states`; every draft is fed the tokens of the text."""
        state, rows = self.base(lesson)
        anchors, last = lesson.anchors[:, : lesson.deep], lesson.tokens.shape[1] - 1
        few = state[:, : lesson.deep]
        text = [at(lesson.tokens, (anchors + n).clamp(max=last)) for n in range(2, lesson.depth + 1)]
        tokens, mask = [self.embedded(ids) for ids in text], self.mask.expand_as(few)
        if lesson.chance is not None and text:
            glances = self._glances(few, text[0], lesson.chance)
            mask = torch.where(glances[..., None], tokens[0], mask)
        levels = self._levels(few, _Text(rows, anchors), tokens, mask, lesson.depth)
        return [state, *levels[1:]]

    @torch.no_grad()
    def _glances(self, state: Tensor, truth: Tensor, chance: torch.Generator) -> Tensor:
        """Which drafts see the token of the first level, bool[R, M], by how many say another one."""
        said = (state @ self.head_weight.T).argmax(-1)
        wrong = (said != self.rows_of(truth)).float().mean()
        return torch.rand(truth.shape, generator=chance).to(truth.device) < _GLANCES * wrong

    def _levels(
        self, state: Tensor, text: _Text, tokens: Sequence[Tensor], mask: Tensor, depth: int
    ) -> list[Tensor]:
        """States of all levels, `[R, M, hidden]` each, with the embedded tokens that the levels before the last chose.

        mask: what stands for a token beside the first level.
        """
        levels, own, held = [state], list[Rows](), torch.zeros_like(state)
        if depth > 1:
            levels += self._step([(mask, state)] * (TOGETHER - 1), text, own, held)[0]
        while len(levels) < depth:
            known = slice(len(levels) - TOGETHER, len(levels))
            pairs = list(zip(tokens[known], levels[known], strict=True))
            new, own, held = self._step(pairs, text, own, held)
            levels += new
        return levels[:depth]

    def _step(
        self, pairs: Sequence[tuple[Tensor, Tensor]], text: _Text, own: Sequence[Rows], held: Tensor
    ) -> tuple[list[Tensor], list[Rows], Tensor]:
        """A state for each pair of embedded token and state; the rows of the draft so far, and what the cell holds.

        own, held: the last two of the step before.
        """
        shown = []
        for token, state in pairs:
            new, keep, show = self.cell(self.paired(token, state)).chunk(3, dim=-1)
            keep = keep.sigmoid()
            held = keep * held + (1 - keep) * new.tanh()
            shown.append(show.sigmoid())
        rows, given, queries, theta = list(own), list[Tensor](), list[Tensor](), self.config.rope_theta
        for (token, state), show in zip(pairs, shown, strict=True):
            given.append(state + show * held)
            x, positions = self.paired(token, given[-1]), text.last + 1 + len(rows)
            rows.append(self.layer.rows(x, positions, theta))
            queries.append(self.layer.queries(x, positions, theta))
        seen = [attend(query, text.rows, text.last, rows) for query in queries]
        return [self.finish(*both) for both in zip(given, seen, strict=True)], rows, held
