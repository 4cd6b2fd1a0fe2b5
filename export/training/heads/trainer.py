"""Trains a draft head on a target's answers: resumable, bounded by epochs or by minutes, with a learning curve."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from paceline.export.errors import first_line
from paceline.export.training.heads.batches import Batch, Batches
from paceline.export.training.heads.checkpoint import save_head
from paceline.export.training.heads.choice import CHECKPOINT, CURVE, UNROLLED
from paceline.export.training.heads.head import DraftHead, Lesson
from paceline.export.training.heads.losses import LOSSES, level_weights
from paceline.export.training.heads.measure import CHAIN, Measured, Yardstick
from paceline.export.training.heads.target import Target
from paceline.export.training.interrupts import after_this
from paceline.runtime.bundle.whole_file import whole_file, write_atomically

_ROWS = 512
"""Rows of logits at a time: what a vocabulary's worth of them takes stays in the megabytes."""
_NORMS = 5.0
"""Times the rate that norms learn with: they say how sure a head is, and are far larger than a step."""
_LEAST_RATE = 0.05
"""Share of the rate that is left at the end."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how to train. `minutes` bounds the clock of all runs together; the rate has decayed by its end."""

    epochs: float = 6.0
    minutes: float = math.inf
    rate: float = 3e-3
    loss: str = "kl"
    levels: int = UNROLLED
    """How many levels of each draft are learnt."""
    decay: float = 0.8
    """A level counts so much of what the one before counts."""
    features: float = 3.0
    """Weight, beside the loss, of how far a state is from the target's own last state there (`DraftHead.apart`)."""
    share: float = 0.5
    """Of the places in a text so many learn the levels after the first one, others at the next epoch."""
    warm_up: int = 50
    """Steps in which the rate rises."""
    weight_decay: float = 0.05
    seed: int = 0
    save_seconds: float = 180.0
    """Between checkpoints, at each of which it is measured."""
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Progress:
    """What the progress bar shows; `ended` says at the end what ended it, `epochs` or `minutes`, and `failed` whether
    it was no use.
    """

    done: float
    step: int
    loss: float
    tokens_per_second: float
    measured: Measured | None = None
    ended: str | None = None
    failed: bool = False


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the learning curve: what was seen until then, and what came of it on held-out answers."""

    step: int
    tokens: int
    minutes: float
    loss: float
    accepted: list[float]
    alpha: list[float]
    round_tokens: float


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
        self._autocast = self._device.type != "cpu" or _fast_bfloat16()

    def learn(self, batch: Batch) -> float:
        """Add the gradients of one batch to the head's; returns its loss."""
        head, device = self._head, self._device
        tokens, anchors, levels = (
            torch.from_numpy(a).to(device) for a in (batch.tokens, batch.anchors, batch.levels)
        )
        features = torch.from_numpy(batch.features).to(device).float().flatten(2)
        features = head.disturbed(features, torch.Generator().manual_seed(batch.seed))
        deep = math.ceil(self._recipe.share * anchors.shape[1])
        lesson = Lesson(tokens, features, anchors, deep, self._recipe.levels)
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
        factor, total, gradients = level.weight / len(level.states), 0.0, list[Tensor]()
        parts = (torch.split(x, _ROWS) for x in (level.states.detach(), level.places, level.tokens))
        for states, places, tokens in zip(*parts, strict=True):
            leaf = states.clone().requires_grad_()
            rows = row_of[places]
            logits = (leaf @ self._head.head_weight.T).float()
            loss = self._loss(logits, law[rows], tokens).sum() * factor
            total += loss.item()
            if self._recipe.features:
                apart = self._head.apart(leaf.float(), hidden[rows])
                loss = loss + apart.sum() * (factor * self._recipe.features)
            loss.backward()  # type: ignore[no-untyped-call]
            assert leaf.grad is not None
            gradients.append(leaf.grad)
        return total, torch.cat(gradients)


class _Run:
    """A head in training, with what a checkpoint keeps of it."""

    def __init__(self, head: DraftHead, recipe: Recipe, folder: Path) -> None:
        self.head, self._recipe, self._folder = head, recipe, folder
        named = [(name, p) for name, p in head.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if p.ndim == 2 and not n.startswith("embed")]
        tables = [p for n, p in named if n.startswith("embed")]
        norms = [p for _, p in named if p.ndim == 1]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.weight_decay, "times": 1.0},
                {"params": tables, "weight_decay": 0.0, "times": 1.0},
                {"params": norms, "weight_decay": 0.0, "times": _NORMS},
            ],
            lr=recipe.rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.step = self.tokens = 0
        self.curve: list[Point] = []
        spent = self._resume() if (folder / CHECKPOINT).is_file() else 0.0
        self._begun = time.monotonic() - spent

    @property
    def minutes(self) -> float:
        """That were trained for, in all runs."""
        return (time.monotonic() - self._begun) / 60

    def _resume(self) -> float:
        path = self._folder / CHECKPOINT
        try:
            state = torch.load(path, weights_only=True, map_location=self._recipe.device)
            self.head.load_state_dict(state["head"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.step, self.tokens = state["step"], state["tokens"]
            self.curve = msgspec.json.decode(state["curve"], type=list[Point])
        except (pickle.UnpicklingError, EOFError, KeyError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{path} cannot be gone on with ({first_line(error)}): without it training begins anew with the head "
                "that is there"
            ) from None
        if (before := state.get("loss", self._recipe.loss)) != self._recipe.loss:
            raise ValueError(
                f"{self._folder} was trained with --loss {before}, not {self._recipe.loss}: train into another folder"
            )
        return float(state["spent"])

    def save(self) -> None:
        """Write the folder of the head, the curve, and what it takes to go on; every file whole."""
        save_head(self.head, self._folder, self.curve[-1].accepted if self.curve else None)
        lines = b"".join(msgspec.json.encode(point) + b"\n" for point in self.curve)
        write_atomically(self._folder / CURVE, lines, private=False)
        state = {
            "head": self.head.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "curve": msgspec.json.encode(self.curve).decode(),
            "spent": 60 * self.minutes,
            "loss": self._recipe.loss,
        }
        with whole_file(self._folder / CHECKPOINT, private=False) as file:
            torch.save(state, file)

    def done(self, total: int) -> float:
        """Share of the steps or of the minutes that is over, whichever is more."""
        shares = (self.step, total), (self.minutes, self._recipe.minutes)
        return max(part / whole if whole else 1.0 for part, whole in shares)

    def learn(self, lessons: Lessons, batch: Batch, done: float) -> float:
        """One step; returns its loss. Raises ValueError where it is no number."""
        loss = lessons.learn(batch)
        if not math.isfinite(loss):
            raise ValueError(f"the loss of step {self.step} is no number: train with a lower --rate")
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        rate = self._recipe.rate * rate_share(done, self.step, self._recipe.warm_up)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["times"]
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        self.tokens += int(batch.lengths.sum())
        return loss


def rate_share(done: float, step: int, warm_up: int) -> float:
    """Of the highest rate: a rise over `warm_up` steps, then half a cosine."""
    fallen = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return min(1.0, (step + 1) / warm_up) * (_LEAST_RATE + (1 - _LEAST_RATE) * fallen)


def train_head(
    head: DraftHead,
    target: Target,
    batches: Batches,
    yardstick: Yardstick,
    recipe: Recipe,
    folder: Path,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Measured:
    """Train into `folder`, going on from a checkpoint there; returns what the head is worth at the end.

    KeyboardInterrupt passes once the step is over and what it takes to go on is written. Raises ValueError where there
    is nothing to go on with in that way.
    """
    head.to(recipe.device)
    run = _Run(head, recipe, folder)
    lessons = Lessons(head, target, recipe)
    total = math.ceil(recipe.epochs * batches.per_epoch)
    shown = min(head.config.depth, max(recipe.levels, CHAIN))
    losses: list[float] = []
    seen, begun = run.tokens, time.monotonic()
    saved = begun if run.step else -math.inf
    measured: Measured | None = None
    try:
        for batch in batches.endless(run.step):
            done = run.done(total)
            if done >= 1.0:
                break
            with after_this():
                losses.append(run.learn(lessons, batch, done))
            if time.monotonic() - saved > recipe.save_seconds:
                measured = _measure(run, yardstick, shown, losses)
                run.save()
                saved, losses = time.monotonic(), losses[-1:]
            speed = (run.tokens - seen) / (time.monotonic() - begun)
            report(Progress(done, run.step, losses[-1], speed, measured))
            measured = None
        last = _measure(run, yardstick, head.config.depth, losses)
    except KeyboardInterrupt:
        if run.step:
            run.save()
        raise
    run.save()
    ended = "epochs" if run.step >= total else "minutes"
    failed = diverged(run.curve, recipe.loss)
    report(Progress(1.0, run.step, run.curve[-1].loss, 0.0, last, ended, failed))
    return last


def diverged(curve: Sequence[Point], loss: str) -> bool:
    """Whether the loss is higher than at the first point, or no draft is right still.

    The value of `tvd++` says nothing: it is scaled anew at each step.
    """
    first, last = curve[0], curve[-1]
    rose = loss != "tvd++" and last.loss > first.loss
    return last.step > first.step and (rose or not last.accepted[0])


def _measure(run: _Run, yardstick: Yardstick, depth: int, losses: list[float]) -> Measured:
    """Put a point on the curve, in the place of one of the same step."""
    measured = yardstick.measure(run.head, depth)
    before = [point for point in run.curve if point.step < run.step]
    loss = sum(losses) / len(losses) if losses else (run.curve[-1].loss if run.curve else 0.0)
    point = Point(
        step=run.step,
        tokens=run.tokens,
        minutes=round(run.minutes, 2),
        loss=round(loss, 4),
        accepted=measured.accepted,
        alpha=measured.alpha,
        round_tokens=measured.round_tokens,
    )
    run.curve = [*before, point]
    return measured


def _fast_bfloat16() -> bool:
    """Whether this processor multiplies 16-bit numbers in tiles (AMX)."""
    asked: Any = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(asked is not None and asked())
