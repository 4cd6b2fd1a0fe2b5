"""Clover (2405.00263, with the output projection of Clover-2, 2408.00264): a level hands what it read to the next one.

A layer over what was read prepares the state (augmenting block). At every level but the first one attention decoder,
the same for all, takes the token that was chosen into the state (regressive connection), and a small network of the
level's own turns the state into what the LM head reads.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from paceline.export.heads.config import HeadConfig
from paceline.export.training.heads.head import Lesson, PairedHead, at
from paceline.export.training.heads.layers import Norm, Rows


class AttentionDecoder(nn.Module):
    """Attends from a state to one token: each head takes as much of its value as query and key are alike.

    That is the mean of their normed products, and so a cosine but for the weights of the norms.

    `o` begins at 0, and so does what a token changes.
    """

    def __init__(self, c: HeadConfig) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(c.hidden, c.heads * c.head_dim, bias=False) for _ in range(3))
        self.o = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)
        nn.init.zeros_(self.o.weight)
        self.norm, self._sizes = Norm(c.hidden, c.epsilon), (c.heads, c.head_dim)
        self.q_norm, self.k_norm = (Norm(c.head_dim, c.epsilon) for _ in range(2))

    def forward(self, state: Tensor, token: Tensor) -> Tensor:
        """state[.., hidden] after an embedded token `[.., hidden]`."""
        query, key, value = (
            part(x).unflatten(-1, self._sizes)
            for part, x in ((self.q, self.norm(state)), (self.k, token), (self.v, token))
        )
        alike = (self.q_norm(query) * self.k_norm(key)).mean(-1, keepdim=True)
        out: Tensor = state + self.o((alike * value).flatten(-2))
        return out


class Clover(PairedHead):
    """levels: a matrix for each depth, which begins at 0."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        width = config.hidden
        self.decoder = AttentionDecoder(config)
        self.levels = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(config.depth))
        for level in self.levels:
            nn.init.zeros_(level.weight)  # type: ignore[arg-type]

    def level(
        self, number: int, state: Tensor, before: Tensor, drafted: Sequence[Tensor], cache: Rows | None
    ) -> tuple[Tensor, Rows | None]:
        """See `OwnDrafts.level`."""
        for token in drafted:
            state = self.decoder(state, self.embedded(token))
        return self._said(number, state), cache

    def states(self, lesson: Lesson) -> list[Tensor]:
        """See `DraftHead.states`; every draft is fed the tokens of the text."""
        state, _ = self.base(lesson)
        states = [self._said(1, state)]
        anchors, last = lesson.anchors[:, : lesson.deep], lesson.tokens.shape[1] - 1
        state = state[:, : lesson.deep]
        for number in range(2, lesson.depth + 1):
            token = at(lesson.tokens, (anchors + number).clamp(max=last))
            state = self.decoder(state, self.embedded(token))
            states.append(self._said(number, state))
        return states

    def _said(self, number: int, state: Tensor) -> Tensor:
        out: Tensor = state + F.silu(self.levels[number - 1](state))
        return out
