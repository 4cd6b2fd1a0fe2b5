"""What every draft head has: taps fused, a vocabulary of its own, levels that training and drafting share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paceline.export.heads.config import HeadConfig
from paceline.export.training.heads.layers import Layer, Norm, Rows, attend


class Lesson(NamedTuple):
    """What the levels of a batch are computed from.

    tokens int64[R, N]: pair i is the features of row i and token i + 1. features float[R, N, columns].
    anchors int64[R, M]: pairs that drafts begin at; those of the first `deep` columns have all levels, the others
    the first one only. chance: of what a head is shown while it learns; None: nothing but what it sees in use.
    """

    tokens: Tensor
    features: Tensor
    anchors: Tensor
    deep: int
    depth: int
    chance: torch.Generator | None = None


class Drafted(NamedTuple):
    """A draft: tokens int64[D], ids of the target; scores float[D, vocab]: logits and noise."""

    tokens: Tensor
    scores: Tensor


class DraftHead(nn.Module, ABC):
    """A head over the hidden states of a target.

    `states` gives the rows of training: for every level the state whose logits are compared with the target.
    """

    head: nn.Linear
    _rows: Tensor
    fuses: ClassVar[bool] = True
    """Whether its taps go through a matrix."""
    embeds: ClassVar[bool] = True
    """Whether it looks at tokens."""
    vocabulary: Tensor
    """int32[vocab]: the target's id of each row of the LM head, ascending."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden
        if self.fuses:
            self.tap_norms = nn.ModuleList(Norm(width, config.epsilon) for _ in config.taps)
            self.fc = nn.Linear(len(config.taps) * width, width, bias=False)
        self.register_buffer("vocabulary", torch.zeros(config.vocab, dtype=torch.int32))
        self.register_buffer("_rows", torch.zeros(config.target_vocab, dtype=torch.int64), persistent=False)
        if not config.tied:
            self.head = nn.Linear(width, config.vocab, bias=False)
        if self.embeds:
            self.embed = nn.Embedding(config.vocab + 1, width)

    def know(self, vocabulary: Tensor) -> None:
        """Take these ids of the target, `int[vocab]`, ascending, as the vocabulary."""
        config = self.config
        ids = vocabulary.to(torch.int64)
        if len(ids) != config.vocab or not bool((ids.diff() > 0).all()) or not int(ids[0]) >= 0:
            raise ValueError(f"a vocabulary of {config.vocab} ascending ids is needed")
        if int(ids[-1]) >= config.target_vocab:
            raise ValueError(f"the vocabulary has ids beyond the target's {config.target_vocab}")
        self.vocabulary.copy_(ids)
        self._rows.fill_(config.vocab)
        self._rows[ids] = torch.arange(config.vocab, device=self._rows.device)

    def rows_of(self, tokens: Tensor) -> Tensor:
        """Rows of the vocabulary for ids of the target; `vocab`, which is none, for those outside it."""
        return self._rows[tokens]

    @property
    def head_weight(self) -> Tensor:
        """float[vocab, hidden]."""
        return self.embed.weight[:-1] if self.config.tied else self.head.weight

    def embedded(self, tokens: Tensor) -> Tensor:
        """float[.., hidden] of ids of the target: those outside the vocabulary share the last row."""
        out: Tensor = self.embed(self.rows_of(tokens))
        return out

    def fuse(self, features: Tensor) -> Tensor:
        """float[.., hidden] of taps side by side: each is normalised by itself (EAGLE-3.1)."""
        if not self.fuses:
            return features
        parts = features.chunk(len(self.config.taps), dim=-1)
        normed = [norm(part) for norm, part in zip(self.tap_norms, parts, strict=True)]
        out: Tensor = self.fc(torch.cat(normed, dim=-1))
        return out

    def disturbed(self, features: Tensor, chance: torch.Generator) -> Tensor:
        """Features as they are learnt from; by default as they are."""
        return features

    def apart(self, states: Tensor, hidden: Tensor) -> Tensor:
        """How far states are from the target's own last ones, both `[N, hidden]`: float[N], by default 1 - cosine."""
        return 1 - F.cosine_similarity(states, hidden, dim=-1)

    @abstractmethod
    def states(self, lesson: Lesson) -> list[Tensor]:
        """For every level the rows that its logits come from: `[R, M, hidden]` first, `[R, deep, hidden]` then.

        Where one pass gives all levels the first has `deep` columns, too.
        """


class OwnDrafts(DraftHead):
    """A head that drafts by itself: of what it drafts it reads the tokens alone.

    `read` is for committed tokens, and `level` drafts: the rows that `states` gives.
    """

    @abstractmethod
    def read(self, tokens: Tensor, features: Tensor, cache: Rows | None = None) -> tuple[Tensor, Rows | None]:
        """States `[T, hidden]` of committed tokens `[T]` with the features before each, and the longer cache."""

    @abstractmethod
    def level(
        self, number: int, state: Tensor, before: Tensor, drafted: Sequence[Tensor], cache: Rows | None
    ) -> tuple[Tensor, Rows | None]:
        """The row `[hidden]` of level `number`, from 1 on, and the longer cache.

        state: what `read` gave; before: the row of the level before; drafted: ids `[]` so far.
        """

    def draft(self, state: Tensor, cache: Rows | None, depth: int, noise: Tensor | None = None) -> Drafted:
        """Draft `depth` tokens after the one that `state[hidden]` was read with. noise: float[depth, vocab]."""
        row, tokens, scores = state, list[Tensor](), list[Tensor]()
        for number in range(1, depth + 1):
            row, cache = self.level(number, state, row, tokens, cache)
            logits = row @ self.head_weight.T
            scores.append(logits if noise is None else logits + noise[number - 1])
            tokens.append(self.vocabulary[scores[-1].argmax()].to(torch.int64))
        return Drafted(torch.stack(tokens), torch.stack(scores))


class AttentiveHead(OwnDrafts):
    """A head with one decoder layer over the pairs of features and tokens, and so with a cache."""

    columns: ClassVar[int] = 1
    """Columns that the layer reads, in widths of a state."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        width = config.hidden
        sizes = (config.heads, config.kv_heads, config.head_dim, config.inner)
        self.layer = Layer(self.columns * width, width, *sizes)
        self.mlp_norm = Norm(width, config.epsilon)

    @abstractmethod
    def enter(self, tokens: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Of pairs of a token and a state: what the layer adds to, `[.., hidden]`, and what its attention reads."""

    def finish(self, given: Tensor, attended: Tensor) -> Tensor:
        """The state after the layer: what the LM head reads, and the next step."""
        h = given + self.layer.o(attended)
        out: Tensor = h + self.layer.mlp(self.mlp_norm(h))
        return out

    def read(self, tokens: Tensor, features: Tensor, cache: Rows | None = None) -> tuple[Tensor, Rows | None]:
        """See `OwnDrafts.read`."""
        return self.step(tokens, self.fuse(features), cache)

    def step(self, tokens: Tensor, given: Tensor, cache: Rows | None) -> tuple[Tensor, Rows]:
        """Rows `[T, hidden]` behind those of the cache; row t sees itself and all before it."""
        past, count = 0 if cache is None else len(cache.keys), len(tokens)
        positions = torch.arange(past, past + count, device=tokens.device)
        (given, x), theta = self.enter(tokens, given), self.config.rope_theta
        new = self.layer.rows(x, positions, theta)
        whole = new if cache is None else Rows(*(torch.cat(both) for both in zip(cache, new, strict=True)))
        queries = self.layer.queries(x, positions, theta)
        seen = attend(queries[None], Rows(whole.keys[None], whole.values[None]), positions[None])
        return self.finish(given, seen[0]), whole

    def base(self, lesson: Lesson) -> tuple[Tensor, Rows]:
        """States of the anchors, `[R, M, hidden]`, and the cache of all pairs."""
        fused, theta = self.fuse(lesson.features[:, :-1]), self.config.rope_theta
        given, x = self.enter(lesson.tokens[:, 1:], fused)
        rows = self.layer.rows(x, torch.arange(x.shape[1], device=x.device), theta)
        queries = self.layer.queries(at(x, lesson.anchors), lesson.anchors, theta)
        attended = attend(queries, rows, lesson.anchors)
        return self.finish(at(given, lesson.anchors), attended), rows


class PairedHead(AttentiveHead):
    """The layer reads the normalised embedding and state side by side, and adds to the state (EAGLE-3)."""

    columns = 2

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.token_norm = Norm(config.hidden, config.epsilon)
        self.state_norm = Norm(config.hidden, config.epsilon)
        self.final_norm = Norm(config.hidden, config.epsilon)

    def enter(self, tokens: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentiveHead.enter`."""
        return given, self.paired(self.embedded(tokens), given)

    def paired(self, embedded: Tensor, given: Tensor) -> Tensor:
        """What the attention reads of an embedded token and a state."""
        return torch.cat((self.token_norm(embedded), self.state_norm(given)), dim=-1)

    def finish(self, given: Tensor, attended: Tensor) -> Tensor:
        """See `AttentiveHead.finish`; normalised (EAGLE-3.1)."""
        out: Tensor = self.final_norm(super().finish(given, attended))
        return out


def at(rows: Tensor, places: Tensor) -> Tensor:
    """rows[R, N, ..] at places[R, M]."""
    return rows[torch.arange(len(rows), device=rows.device)[:, None], places]
