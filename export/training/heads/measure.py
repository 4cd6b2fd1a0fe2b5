"""What a head is worth: how often the target would take its drafts, on answers that it has not learnt from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paceline.export.training.heads.batches import Batch, Conversation, make_batch
from paceline.export.training.heads.head import DraftHead, Lesson
from paceline.export.training.heads.target import Target
from paceline.runtime.part import CHILDREN

CHAIN = 4
"""Tokens that the chain drafts of which tokens a round are told."""
_ROWS = 512
GREEDY = 0.9
"""An answer in which more of the tokens than this were the likeliest ones was written greedily."""


@dataclass(frozen=True, slots=True)
class Measured:
    """accepted: by level, the share of greedy drafts that are the next token of a greedy answer, where all before were;
    of all answers where none is greedy.

    alpha: by level, the mean of sum min(p, q) where the text up to there could be drafted: how often a sampled draft
    is accepted. round_tokens: tokens a round of a greedy chain of CHAIN. outside: the target's mass outside the
    head's vocabulary. ranks: by level, how often the first, second, ... choice was the next token, where those before
    were among the CHILDREN best.
    """

    accepted: list[float]
    alpha: list[float]
    round_tokens: float
    outside: float
    ranks: list[list[float]] = field(default_factory=list)


class Tally:
    """Counts what became of drafts, place by place, for `Measured`."""

    def __init__(self, depth: int) -> None:
        self._tried, self._right, self._reachable, self._sums = np.zeros((4, depth))
        self._tokens = self._rounds = 0

    def add(
        self,
        right: npt.NDArray[np.bool_],
        alpha: npt.NDArray[np.float64],
        reachable: npt.NDArray[np.bool_],
        greedy: bool,
    ) -> None:
        """The places of one text, [places, depth]: was the draft right, sum min(p, q), is there such a level.

        greedy: whether the text was written so; of others only alpha counts.
        """
        self._reachable += reachable.sum(0)
        self._sums += np.where(reachable, alpha, 0).sum(0)
        if not greedy:
            return
        runs = np.logical_and.accumulate(right, 1)
        alive = reachable.copy()
        alive[:, 1:] &= runs[:, :-1]
        self._tried += alive.sum(0)
        self._right += runs.sum(0)
        tokens, rounds = walked(runs[:, :CHAIN].sum(1))
        self._tokens, self._rounds = self._tokens + tokens, self._rounds + rounds

    def measured(self, outside: float = 0.0) -> Measured:
        """All that was added."""
        with np.errstate(invalid="ignore"):
            accepted = np.nan_to_num(self._right / self._tried)
            mean = np.nan_to_num(self._sums / self._reachable)
        return Measured(
            [round(float(value), 4) for value in accepted],
            [round(float(value), 4) for value in mean],
            round(self._tokens / max(1, self._rounds), 3),
            round(outside, 4),
        )


class Yardstick:
    """Held-out conversations with what their target thought of every token."""

    def __init__(
        self,
        conversations: Iterable[Conversation],
        target: Target,
        vocabulary: Tensor,
        reads: Sequence[int],
        longest: int,
        most: int = 1 << 30,
    ) -> None:
        """most: tokens of answers to measure on."""
        self._batches: list[tuple[Batch, Tensor, bool]] = []
        self._rows = target.head[vocabulary.to(torch.int64)]
        for conversation in conversations:
            batch = make_batch([conversation], longest, reads)
            if most <= 0:
                break
            if batch.anchors.shape[1]:
                most -= batch.anchors.shape[1]
                totals, best = list[Tensor](), list[Tensor]()
                for part in torch.split(_hidden(batch), _ROWS):
                    logits = part @ target.head.T
                    totals.append(logits.logsumexp(-1))
                    best.append(logits.argmax(-1))
                said = batch.tokens[0, batch.anchors[0, 0] + 2 :]
                same = (torch.cat(best)[: len(said)].numpy() == said).mean()
                self._batches.append((batch, torch.cat(totals), bool(same > GREEDY)))
        if not any(greedy for *_, greedy in self._batches):
            self._batches = [(batch, total, True) for batch, total, _ in self._batches]

    @torch.no_grad()
    def measure(self, head: DraftHead, depth: int) -> Measured:
        """All levels up to `depth`."""
        tally, rows, inside = Tally(depth), 0, 0.0
        by_rank, reached = np.zeros((depth, CHILDREN)), np.zeros(depth)
        for batch, total, greedy in self._batches:
            found, alpha, open_to, mass, places = self._one(head, batch, total, depth)
            tally.add(found, alpha, open_to, greedy)
            inside, rows = inside + mass, rows + len(found)
            if not greedy:
                continue
            branched = open_to.copy()
            branched[:, 1:] &= np.logical_and.accumulate(places < CHILDREN, 1)[:, :-1]
            reached += branched.sum(0)
            by_rank += [[(at == rank).sum() for rank in range(CHILDREN)] for at in _where(places, branched)]
        with np.errstate(invalid="ignore"):
            ranks = np.nan_to_num(by_rank / reached[:, None])
        levels = [[round(float(value), 4) for value in level] for level in ranks]
        return replace(tally.measured(1 - inside / max(1, rows)), ranks=levels)

    def _one(
        self, head: DraftHead, batch: Batch, total: Tensor, depth: int
    ) -> tuple[
        npt.NDArray[np.bool_], npt.NDArray[np.float64], npt.NDArray[np.bool_], float, npt.NDArray[np.int64]
    ]:
        """Of one conversation: by anchor and level, was the draft right, sum min(p, q), could the draft get there.

        And the sum over its rows of the target's mass on the head's vocabulary, and by anchor and level how many tokens
        the head thought better than the next one, all of its vocabulary where it does not know that.
        """
        device = head.head_weight.device
        text = torch.from_numpy(batch.tokens[0])
        anchors, levels = torch.from_numpy(batch.anchors), torch.from_numpy(batch.levels[0])
        law = (_hidden(batch) @ self._rows.T - total[:, None]).exp()
        features = torch.from_numpy(batch.features).float().flatten(2)
        lesson = Lesson(text[None], features, anchors, anchors.shape[1], depth)
        lesson = lesson._replace(
            tokens=lesson.tokens.to(device), features=features.to(device), anchors=anchors.to(device)
        )
        rows = head.rows_of(text.to(device)).cpu()
        first = int(anchors[0, 0]) + 1
        right, alpha, reachable, ranks = [], [], [], []
        known = torch.ones(len(levels), dtype=torch.bool)
        for number, state in enumerate(head.states(lesson), 1):
            places = (anchors[0] + number).clamp(max=len(text) - 2)
            q = (state[0] @ head.head_weight.T).float().softmax(-1).cpu()
            there = known & (levels >= number)
            drafted, truth = q.argmax(-1), rows[places + 1]
            right.append(there & (drafted == truth))
            unknown = truth >= head.config.vocab
            own = q.gather(1, truth.clamp(max=head.config.vocab - 1)[:, None])
            ranks.append((q > own).sum(-1).masked_fill(unknown, head.config.vocab))
            alpha.append(torch.minimum(q, law[places - first]).sum(-1))
            reachable.append(there)
            known = there & (truth < head.config.vocab)
        mass = float(law[: len(levels)].sum())
        return (
            torch.stack(right, 1).numpy(),
            torch.stack(alpha, 1).double().numpy(),
            torch.stack(reachable, 1).numpy(),
            mass,
            torch.stack(ranks, 1).numpy(),
        )


def _where(places: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.int64]]:
    """Of each column those that are chosen."""
    for column, rows in zip(places.T, chosen.T, strict=True):
        yield column[rows]


def _hidden(batch: Batch) -> Tensor:
    """float32[rows, H] of the only conversation of a batch, from the first row on whose law a draft is held against."""
    return torch.from_numpy(batch.hidden[0, batch.anchors[0, 0] + 1 :]).float()


def walked(lengths: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Tokens and rounds of decoding where the draft at place i has `lengths[i]` right tokens.

    A round brings one token more than were right; the first one begins at place 0.
    """
    at = tokens = rounds = 0
    while at < len(lengths):
        gained = min(int(lengths[at]) + 1, len(lengths) - at)
        tokens, rounds, at = tokens + gained, rounds + 1, at + gained
    return tokens, rounds
