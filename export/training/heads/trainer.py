"""Trains a draft head on a target's answers: what it learns at every level of its drafts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.export.training import loop
from paceline.export.training.heads.batches import Batch, Batches
from paceline.export.training.heads.checkpoint import save_head
from paceline.export.training.heads.choice import UNROLLED
from paceline.export.training.heads.head import DraftHead, Lesson
from paceline.export.training.heads.losses import LOSSES, level_weights
from paceline.export.training.heads.measure import CHAIN, Measured, Yardstick
from paceline.export.training.heads.target import Target
from paceline.export.training.through_head import through_head


@dataclass(frozen=True, slots=True)
class Recipe(loop.Recipe):
    """The same of a head: what it learns of each draft."""

    levels: int = UNROLLED
    """How many levels of each draft are learnt."""
    decay: float = 0.8
    """A level counts so much of what the one before counts."""
    features: float = 3.0
    """Weight, beside the loss, of how far a state is from the target's own last state there (`DraftHead.apart`)."""
    share: float = 0.5
    """Of the places in a text so many learn the levels after the first one, others at the next epoch."""


class _Level(NamedTuple):
    """Rows of one level: their states, where the target's law of each stands, and the token of the text."""

    states: Tensor
    places: Tensor
    tokens: Tensor
    weight: float


class Lessons:
    """Turns batches into losses: what the target says, and what the head should have said."""

    def __init__(self, head: DraftHead, target: Target, recipe: Recipe) -> None:
        self._head, self._recipe = head, recipe
        self._device = torch.device(recipe.device)
        self._rows = target.head[head.vocabulary.to(torch.int64).cpu()].to(self._device)
        self._loss = LOSSES[recipe.loss]
        self._weights = level_weights(recipe.levels, recipe.decay)
        self._autocast = self._device.type != "cpu" or loop.fast_bfloat16()

    def learn(self, batch: Batch) -> float:
        """Add the gradients of one batch to the head's; returns its loss."""
        head, device = self._head, self._device
        tokens, anchors, levels = (
            torch.from_numpy(a).to(device) for a in (batch.tokens, batch.anchors, batch.levels)
        )
        features = torch.from_numpy(batch.features).to(device).float().flatten(2)
        chance = torch.Generator().manual_seed(batch.seed)
        features = head.disturbed(features, chance)
        deep = math.ceil(self._recipe.share * anchors.shape[1])
        lesson = Lesson(tokens, features, anchors, deep, self._recipe.levels, chance)
        with torch.autocast(device.type, torch.bfloat16, self._autocast, cache_enabled=False):
            states = head.states(lesson)
            found = self._levels(lesson, levels, states)
            used = torch.zeros(tokens.numel(), dtype=torch.bool, device=device)
            for level in found:
                used[level.places] = True
            hidden = torch.from_numpy(batch.hidden).to(device).flatten(0, 1)[used].float()
            law = (hidden @ self._rows.T).float().softmax(-1)
            row_of = used.cumsum(0) - 1
            total, gradients = 0.0, []
            for level in found:
                loss, gradient = self._one(level, hidden, law, row_of)
                total += loss
                gradients.append(gradient)
        if found:
            torch.autograd.backward([level.states for level in found], gradients)
        return total

    def _levels(self, lesson: Lesson, known: Tensor, states: list[Tensor]) -> list[_Level]:
        """The rows that count: as far as the text goes, and as its tokens can be drafted."""
        found, size = list[_Level](), lesson.tokens.shape[1]
        rows = self._head.rows_of(lesson.tokens)
        starts = torch.arange(len(rows), device=rows.device)[:, None] * size
        inside = torch.ones_like(known, dtype=torch.bool)
        for number, (state, weight) in enumerate(zip(states, self._weights, strict=True), 1):
            width = state.shape[1]
            places = starts + (lesson.anchors[:, :width] + number).clamp(max=size - 2)
            truth = rows.flatten()[places + 1]
            inside = inside[:, :width] & (known[:, :width] >= number) & (truth < self._head.config.vocab)
            if bool(inside.any()):
                found.append(_Level(state[inside], places[inside], truth[inside], weight))
        return found

    def _one(self, level: _Level, hidden: Tensor, law: Tensor, row_of: Tensor) -> tuple[float, Tensor]:
        """The loss of a level and its gradient by the states; that by the LM head is added to it at once."""
        factor = level.weight / len(level.states)

        def loss_of(states: Tensor, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            rows = row_of[level.places[part]]
            told = self._loss(logits, law[rows], level.tokens[part]).sum() * factor
            if not self._recipe.features:
                return told, told
            apart = self._head.apart(states.float(), hidden[rows])
            return told, told + apart.sum() * (factor * self._recipe.features)

        return through_head(level.states, self._head.head_weight, loss_of)


class _Pupil:
    """A head as the loop sees it."""

    def __init__(self, head: DraftHead, target: Target, yardstick: Yardstick, recipe: Recipe) -> None:
        self.module = head.to(recipe.device)
        self._lessons, self._yardstick = Lessons(head, target, recipe), yardstick
        self._shown = min(head.config.depth, max(recipe.levels, CHAIN))
        self._ranks: list[list[float]] | None = None

    def learn(self, batch: Batch) -> float:
        return self._lessons.learn(batch)

    def measure(self, last: bool) -> Measured:
        found = self._yardstick.measure(self.module, self.module.config.depth if last else self._shown)
        self._ranks = found.ranks
        return found

    def save(self, folder: Path, accepted: list[float] | None) -> None:
        save_head(self.module, folder, accepted, self._ranks)


def train_head(
    head: DraftHead,
    target: Target,
    batches: Batches,
    yardstick: Yardstick,
    recipe: Recipe,
    folder: Path,
    report: Callable[[loop.Progress], None] = lambda progress: None,
) -> Measured:
    """Train into `folder`, as `loop.train` does."""
    return loop.train(_Pupil(head, target, yardstick, recipe), batches, recipe, folder, report)
