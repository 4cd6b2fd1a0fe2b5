"""A draft model that learns: its samples, what it made of them, and how it drafts since."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.runtime.adaptation.guard import Guard
from paceline.runtime.adaptation.laws import Episode
from paceline.runtime.adaptation.samples import Sample, samples_of
from paceline.runtime.adaptation.step import STATES, TrainingStep
from paceline.runtime.manifest import Part
from paceline.runtime.translation.sides import Sides

RATE, PASSES = 3e-3, 6
"""Of the optimiser, and how many steps a new sample is worth: one reads it, the others any that is kept."""
SLOWER = 4
"""Each time that learning did harm, its rate is divided by this."""
PREDICTING = 0.1
"""Rate of what predicts acceptance, over the columns of the hidden state that it reads."""
SAMPLES_BYTES = 4 << 20
"""Of the samples that are kept, to be read again."""
WAITING_BYTES = 1 << 20
"""Of the answers that wait to be learnt: where these are more the oldest ones go, but for the last."""
_COPIES = 3
"""Of the adapters: the better ones, and what is put aside for a moment."""
_ALLOCATED = 1.35
"""Bytes that are taken for each byte of a sample, as measured: it is many small arrays."""
_TAKING = 1 << 20
"""Bytes of the laws of an answer while they are taken down, and of its samples."""
_RECENT = 20
"""Answers of which the acceptance is told."""
_SMOOTH = 0.05


def learning_bytes(part: Part) -> int:
    """What a draft model that learns holds besides its training step's session and temporaries."""
    samples = int(_ALLOCATED * SAMPLES_BYTES)
    return samples + WAITING_BYTES + _TAKING + (STATES + _COPIES) * part.adapter_bytes


@dataclass(slots=True)
class Counted:
    """Tokens that were judged, and how many of them were accepted."""

    accepted: int = 0
    tested: int = 0

    @property
    def rate(self) -> float | None:
        """None where none was judged."""
        return self.accepted / self.tested if self.tested else None


class Pupil:
    """One draft model, whoever runs it. vocab: its tokens; sides: None where these are the target's."""

    def __init__(self, name: str, step: TrainingStep, vocab: int, sides: Sides | None) -> None:
        self.name, self.step, self._vocab, self._sides = name, step, vocab, sides
        self._episodes: deque[Episode] = deque()
        self._fresh: deque[Sample] = deque()
        self._kept: deque[Sample] = deque()
        self._owed = self._bytes = 0
        self._turn = False
        self._rng = np.random.default_rng(0)
        self.before = Counted()
        """Before it had learnt anything."""
        self._after: deque[Counted] = deque(maxlen=_RECENT)
        self.loss: float | None = None
        """Of a sample before it is learnt, smoothed; None where none was."""
        self.without: float | None = None
        """The same as if nothing had been learnt."""
        self.guard = Guard()
        self.fault: str | None = None
        """Why it learns no more."""

    @property
    def after(self) -> Counted:
        """In the last answers since it has learnt."""
        return Counted(sum(c.accepted for c in self._after), sum(c.tested for c in self._after))

    @property
    def waits(self) -> bool:
        """Whether there is something to learn."""
        return bool(self._episodes or self._owed)

    def show(self, episode: Episode) -> None:
        """An answer to learn from; the oldest ones go where there are too many."""
        if self.fault is not None:
            return
        self._episodes.append(episode)
        while len(self._episodes) > 1 and sum(each.bytes for each in self._episodes) > WAITING_BYTES:
            self._episodes.popleft()

    def give_up(self, error: Exception) -> None:
        """A step failed: what was learnt before stays, and nothing more is learnt."""
        self.fault = f"learning ended: {' '.join(str(error).split())}"
        self._episodes.clear()
        self._fresh.clear()
        self._owed = 0

    def learn(self) -> None:
        """One step, on a new sample or else on any that is kept; or the samples of the next answer are made."""
        if self._owed:
            self._owed -= 1
            if self._fresh:
                self._learn_new(self._fresh.popleft())
            else:
                self._run(self._kept[int(self._rng.integers(len(self._kept)))])
        elif self._episodes:
            self._cut(self._episodes.popleft())

    def _cut(self, episode: Episode) -> None:
        """Make samples of an answer; each is worth some steps."""
        made = list(samples_of(episode, self._vocab, self._sides))
        self._fresh.extend(made)
        self._owed += PASSES * len(made)

    def _learn_new(self, sample: Sample) -> None:
        """Learn a sample, and keep it; the oldest ones go where there are too many."""
        without, steps = self.step.loss_without(sample), self.step.steps
        adapters = {name: array.copy() for name, array in self.step.adapters.items()}
        loss = self._run(sample)
        self.loss, self.without = _follow(self.loss, loss), _follow(self.without, without)
        if steps and self.guard.see(loss, without, adapters):
            self._go_back()
        self._kept.append(sample)
        self._bytes += _size(sample)
        while self._bytes > SAMPLES_BYTES:
            self._bytes -= _size(self._kept.popleft())

    @property
    def _rate(self) -> float:
        return RATE / float(SLOWER**self.guard.returns)

    def _go_back(self) -> None:
        """To the adapters that were better than none, or to none."""
        steps, better = self.step.steps, self.guard.better
        self.step.forget()
        if better is not None:
            self.step.put(better, steps)
        self.step.steps = steps
        self.guard.went_back()

    def _run(self, sample: Sample) -> float:
        """A step, of the adapters and of what predicts acceptance, or of one of them in turn; the loss before."""
        part = self.step.part
        if part.predictor is None:
            return self.step.run(sample, self._rate)
        predicting = PREDICTING / part.hidden
        if part.predictor == "joint":
            return self.step.run(sample, self._rate, predicting)
        self._turn = not self._turn
        return self.step.run(sample, *((self._rate, 0.0) if self._turn else (0.0, predicting)))

    def count(self, accepted: int, tested: int, learnt: bool) -> None:
        """An answer is over. learnt: whether it was drafted with what was learnt."""
        if learnt:
            self._after.append(Counted(accepted, tested))
        elif not self.step.steps:
            self.before.accepted += accepted
            self.before.tested += tested

    def put(self, adapters: Mapping[str, npt.NDArray[np.float32]], steps: int, before: Counted) -> None:
        """Go on from what was saved. Raises ValueError for what does not fit."""
        self.step.put(adapters, steps)
        self.before = before

    def forget(self) -> None:
        """All of it."""
        self.step.forget()
        for held in (self._episodes, self._fresh, self._kept, self._after):
            held.clear()
        self._owed, self._bytes, self.fault = 0, 0, None
        self.before, self.loss, self.without, self.guard = Counted(), None, None, Guard()


def _follow(smoothed: float | None, loss: float) -> float | None:
    """A mean of losses, the last one included where it is a number."""
    if not np.isfinite(loss):
        return smoothed
    return loss if smoothed is None else smoothed + _SMOOTH * (loss - smoothed)


def _size(sample: Sample) -> int:
    return sum(array.nbytes for array in sample.values())
