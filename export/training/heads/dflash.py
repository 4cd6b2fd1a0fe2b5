"""DFlash (2602.06036): a few layers draft a whole block in one pass, over keys and values of the target's taps.

The block is the root and a mask for each level; level d is the row d places behind the root, and guesses the token
there. No level knows what another one chose, but all see each other's rows. What `read` calls a state is the root's
embedding: what was read of the text is in the cache alone, whose rows are `[T, layers, kv heads, head_dim]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paceline.export.heads.config import HeadConfig
from paceline.export.training.heads.head import Drafted, Lesson, OwnDrafts, at
from paceline.export.training.heads.layers import Layer, Norm, Rows, attend_blocks, rotated


class BlockLayer(Layer):
    """A decoder layer whose queries and keys are normalised, head by head."""

    def __init__(self, c: HeadConfig) -> None:
        super().__init__(c.hidden, c.hidden, c.heads, c.kv_heads, c.head_dim, c.inner)
        self.input_norm, self.mlp_norm = (Norm(c.hidden, c.epsilon) for _ in range(2))
        self.q_norm, self.k_norm = (Norm(c.head_dim, c.epsilon) for _ in range(2))

    def queries(self, x: Tensor, positions: Tensor, theta: float) -> Tensor:
        """See `Layer.queries`."""
        return rotated(self.q_norm(self.q(x).unflatten(-1, (-1, self.head_dim))), positions, theta)

    def rows(self, x: Tensor, positions: Tensor, theta: float) -> Rows:
        """See `Layer.rows`."""
        keys, values = (part(x).unflatten(-1, (-1, self.head_dim)) for part in (self.k, self.v))
        return Rows(rotated(self.k_norm(keys), positions, theta), values)


class DFlash(OwnDrafts):
    """Depth and one rows a block."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.mask = nn.Parameter(torch.zeros(config.hidden))
        self.context_norm = Norm(config.hidden, config.epsilon)
        self.layers = nn.ModuleList(BlockLayer(config) for _ in range(config.layers))
        self.final_norm = Norm(config.hidden, config.epsilon)

    def read(self, tokens: Tensor, features: Tensor, cache: Rows | None = None) -> tuple[Tensor, Rows | None]:
        """See `OwnDrafts.read`."""
        past = 0 if cache is None else len(cache.keys)
        positions = torch.arange(past, past + len(tokens), device=tokens.device)
        new = Rows(*(torch.stack(side, 1) for side in zip(*self._context(features, positions), strict=True)))
        whole = new if cache is None else Rows(*(torch.cat(both) for both in zip(cache, new, strict=True)))
        return self.embedded(tokens), whole

    def level(
        self, number: int, state: Tensor, before: Tensor, drafted: Sequence[Tensor], cache: Rows | None
    ) -> tuple[Tensor, Rows | None]:
        """See `OwnDrafts.level`; all levels are computed for one."""
        return self._levels(state, cache)[number - 1], cache

    def draft(self, state: Tensor, cache: Rows | None, depth: int, noise: Tensor | None = None) -> Drafted:
        """See `DraftHead.draft`."""
        scores = self._levels(state, cache)[:depth] @ self.head_weight.T
        scores = scores if noise is None else scores + noise
        return Drafted(self.vocabulary[scores.argmax(-1)].to(torch.int64), scores)

    def states(self, lesson: Lesson) -> list[Tensor]:
        """See `DraftHead.states`; one pass gives all levels, so the other anchors are left out at the first, too."""
        features = lesson.features[:, :-1]
        base = self._context(features, torch.arange(features.shape[1], device=features.device))
        anchors = lesson.anchors[:, : lesson.deep]
        roots = self.embedded(at(lesson.tokens, anchors + 1))
        return list(self._block(roots, base, anchors).unbind(2)[: lesson.depth])

    def _context(self, features: Tensor, positions: Tensor) -> list[Rows]:
        """Keys and values of every layer, of rows of taps."""
        context, theta = self.context_norm(self.fuse(features)), self.config.rope_theta
        return [layer.rows(context, positions, theta) for layer in self._layers()]

    def _levels(self, state: Tensor, cache: Rows | None) -> Tensor:
        """Rows of all levels `[depth, hidden]` behind a cache."""
        assert cache is not None
        base = [Rows(*(side[None, :, number] for side in cache)) for number in range(self.config.layers)]
        last = torch.full((1, 1), len(cache.keys) - 1, device=state.device)
        return self._block(state[None, None], base, last)[0, 0]

    def _block(self, roots: Tensor, base: Sequence[Rows], last: Tensor) -> Tensor:
        """All levels, `[R, M, depth, hidden]`, of blocks that begin with `roots[R, M, hidden]` behind `last`."""
        masks = self.mask.expand(*roots.shape[:-1], self.config.depth, -1)
        x = torch.cat((roots[..., None, :], masks), dim=-2)
        positions = last[..., None] + 1 + torch.arange(x.shape[-2], device=last.device)
        theta = self.config.rope_theta
        for layer, rows in zip(self._layers(), base, strict=True):
            normed = layer.input_norm(x)
            own, queries = layer.rows(normed, positions, theta), layer.queries(normed, positions, theta)
            x = x + layer.o(attend_blocks(queries, rows, last, own))
            x = x + layer.mlp(layer.mlp_norm(x))
        out: Tensor = self.final_norm(x[..., 1:, :])
        return out

    def _layers(self) -> list[BlockLayer]:
        return [layer for layer in self.layers if isinstance(layer, BlockLayer)]
