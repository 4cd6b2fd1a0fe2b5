"""The loop of a training on answers: resumable, bounded by epochs or by minutes, with a learning curve."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from paceline.export.errors import first_line
from paceline.export.training.heads.choice import CHECKPOINT, CURVE
from paceline.export.training.heads.measure import Measured
from paceline.export.training.interrupts import after_this
from paceline.runtime.bundle.whole_file import claims, whole_file, write_atomically

_NORMS = 5.0
"""Times the rate that norms learn with: they say how sure a model is, and are far larger than a step."""
_LEAST_RATE = 0.05
"""Share of the rate that is left at the end."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how to train. `minutes` bounds the clock of all runs together; the rate has decayed by its end."""

    epochs: float = 6.0
    minutes: float = math.inf
    rate: float = 3e-3
    loss: str = "kl"
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


Report = Callable[[Progress], None]


class Sized(Protocol):
    """A batch that knows how many tokens each of its rows has, int64[R]."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row."""


B = TypeVar("B", bound=Sized)
C = TypeVar("C", bound=Sized, contravariant=True)
D = TypeVar("D", bound=Sized, covariant=True)


class Learner(Protocol[C]):
    """What learns: its weights, what a batch teaches it, what it is worth, and the files that it becomes."""

    @property
    def module(self) -> torch.nn.Module:
        """Its weights: matrices, tables (with `embed` in their names) and norms."""

    def learn(self, batch: C) -> float:
        """Add the gradients of one batch; returns its loss."""

    def measure(self, last: bool) -> Measured:
        """On what it has not learnt from; `last`: at the end of the training, where more may be told."""

    def save(self, folder: Path, accepted: list[float] | None) -> None:
        """Write what it is, every file whole. accepted: as measured last."""


class Source(Protocol[D]):
    """Batches in an order that depends on the step alone."""

    per_epoch: int

    def endless(self, step: int) -> Iterator[D]:
        """All batches from a step on."""


class _Run:
    """Weights in training, with what a checkpoint keeps of them."""

    def __init__(self, module: torch.nn.Module, recipe: Recipe, folder: Path) -> None:
        self._module, self._recipe, self._folder = module, recipe, folder
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
        tables = [p for n, p in named if "embed" in n]
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
            self._module.load_state_dict(state["model"] if "model" in state else state["head"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.step, self.tokens = state["step"], state["tokens"]
            self.curve = msgspec.json.decode(state["curve"], type=list[Point])
            spent = float(state["spent"])
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{path} cannot be gone on with ({first_line(error)}): without it training begins anew with the "
                "weights that are there"
            ) from None
        if (before := state.get("loss", self._recipe.loss)) != self._recipe.loss:
            raise ValueError(
                f"{self._folder} was trained with --loss {before}, not {self._recipe.loss}: train into another folder"
            )
        return spent

    def save(self, learner: Learner[Any]) -> None:
        """Write what was learnt, the curve, and what it takes to go on; every file whole."""
        learner.save(self._folder, self.curve[-1].accepted if self.curve else None)
        lines = b"".join(msgspec.json.encode(point) + b"\n" for point in self.curve)
        write_atomically(self._folder / CURVE, lines, private=False)
        state = {
            "model": self._module.state_dict(),
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

    def learn(self, learner: Learner[B], batch: B, done: float) -> float:
        """One step; returns its loss. Raises ValueError where it is no number."""
        loss = learner.learn(batch)
        if not math.isfinite(loss):
            raise ValueError(f"the loss of step {self.step} is no number: train with a lower --rate")
        torch.nn.utils.clip_grad_norm_(self._module.parameters(), 1.0)
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


@claims("folder")
def train(
    learner: Learner[B],
    batches: Source[B],
    recipe: Recipe,
    folder: Path,
    report: Report = lambda progress: None,
) -> Measured:
    """Train into `folder`, going on from a checkpoint there; returns what the learner is worth at the end.

    KeyboardInterrupt passes once the step is over and what it takes to go on is written. Raises ValueError where there
    is nothing to go on with in that way.
    """
    learner.module.to(recipe.device)
    run = _Run(learner.module, recipe, folder)
    total = math.ceil(recipe.epochs * batches.per_epoch)
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
                losses.append(run.learn(learner, batch, done))
            if time.monotonic() - saved > recipe.save_seconds:
                measured = _measure(run, learner, losses, last=False)
                run.save(learner)
                saved, losses = time.monotonic(), losses[-1:]
            speed = (run.tokens - seen) / (time.monotonic() - begun)
            report(Progress(done, run.step, losses[-1], speed, measured))
            measured = None
        last = _measure(run, learner, losses, last=True)
    except KeyboardInterrupt:
        if run.step:
            run.save(learner)
        raise
    run.save(learner)
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


def _measure(run: _Run, learner: Learner[Any], losses: list[float], last: bool) -> Measured:
    """Put a point on the curve, in the place of one of the same step."""
    measured = learner.measure(last)
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


def fast_bfloat16() -> bool:
    """Whether this processor multiplies 16-bit numbers (AMX or AVX512-BF16): twice as fast as float32 or more."""
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
    return any(ask is not None and ask() for ask in asked)
