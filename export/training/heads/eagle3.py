"""EAGLE-3 (2503.01840) with the norms of 3.1: a decoder layer that goes on with its own states.

Trained by unrolling (training-time test): level j of a draft that begins at pair a reads the state of level j - 1 and
the token that was drafted, and sees what it would see in use: the pairs up to a, read with the target's features, and
the rows of its own chain.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from paceline.export.training.heads.head import AttentiveHead, Lesson, PairedHead, at
from paceline.export.training.heads.layers import Rows, attend


class Chain(AttentiveHead):
    """A head whose one layer is run once a level."""

    def level(
        self, number: int, state: Tensor, before: Tensor, drafted: Sequence[Tensor], cache: Rows | None
    ) -> tuple[Tensor, Rows | None]:
        """See `OwnDrafts.level`: the first level has been read, the others are steps."""
        if number == 1:
            return state, cache
        row, cache = self.step(drafted[-1][None], before[None], cache)
        return row[0], cache

    def states(self, lesson: Lesson) -> list[Tensor]:
        """See `DraftHead.states`; every draft is fed the tokens of the text."""
        state, base = self.base(lesson)
        states, own, theta = [state], list[Rows](), self.config.rope_theta
        anchors = lesson.anchors[:, : lesson.deep]
        state = state[:, : lesson.deep]
        last = lesson.tokens.shape[1] - 1
        for number in range(2, lesson.depth + 1):
            tokens = at(lesson.tokens, (anchors + number).clamp(max=last))
            (given, x), positions = self.enter(tokens, state), anchors + (number - 1)
            own.append(self.layer.rows(x, positions, theta))
            queries = self.layer.queries(x, positions, theta)
            state = self.finish(given, attend(queries, base, anchors, own))
            states.append(state)
        return states


class Eagle3(Chain, PairedHead):
    """Such a chain over normalised pairs."""
