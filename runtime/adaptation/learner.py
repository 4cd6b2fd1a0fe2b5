"""When draft models learn: in idle moments, on a thread of its own, and never beside a round."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from time import perf_counter

from paceline.runtime.adaptation.laws import Episode
from paceline.runtime.adaptation.pupil import Pupil
from paceline.runtime.adaptation.saved import SavedAdapters

SHARE = 0.05
"""Of the time that answers take, that learning may take before the next one begins; an idle moment is free."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What a draft model has learnt, for people. loss: of new samples, smoothed; without: had nothing been learnt.
    returns: how often it was worse than that, and went back. before, after: acceptance of answers that were drafted
    without anything learnt, and of the last ones since. waiting: whether there is more to learn. seconds: that steps
    took. file, bytes: where it is kept, and its size. fault: why it learns no more, or why a file that is
    there is not used.
    """

    name: str
    steps: int
    loss: float | None
    without: float | None
    returns: int
    before: float | None
    after: float | None
    waiting: bool
    seconds: float
    adapter_bytes: int
    file: Path | None
    bytes: int | None
    fault: str | None


class Learner:
    """All pupils of a loaded bundle; sessions share them.

    A step runs while no answer does. An answer that begins waits for the step that runs, a few milliseconds, and, where
    there was no idle moment, for as many more as SHARE allows.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._pupils: dict[str, tuple[Pupil, SavedAdapters]] = {}
        self._changed = Condition()
        self._answers = 0
        self._busy = False
        self._over = False
        self._kept = True
        self._thread: Thread | None = None
        self.answering = 0.0
        """Seconds of answers so far."""
        self.learning = 0.0
        """Seconds of steps so far."""
        self.delaying = 0.0
        """Seconds that answers waited for steps."""

    def pupil(self, name: str, pair: str, made: Callable[[], Pupil]) -> Pupil:
        """The pupil of this name; at first it is made, and given what was saved."""
        with self._changed:
            if name not in self._pupils:
                pupil, saved = made(), SavedAdapters(pair if self._kept else None)
                saved.load(pupil)
                self._pupils[name] = pupil, saved
            return self._pupils[name][0]

    def alone(self) -> None:
        """Begin with nothing learnt, read and write no file from here on: for measurements."""
        with self.still():
            self._kept = False
            for name, (pupil, _) in self._pupils.items():
                pupil.forget()
                self._pupils[name] = pupil, SavedAdapters(None)

    def enter(self) -> None:
        """An answer begins: from here on no step runs."""
        begun = self._clock()
        with self._changed:
            self._answers += 1
            try:
                while self._busy:
                    self._changed.wait()
                while self._answers == 1 and self.delaying + self._clock() - begun < SHARE * self.answering:
                    if not self._step():
                        break
            except BaseException:  # an interrupt: the answer does not begin
                self._answers -= 1
                self._changed.notify_all()
                raise
            self.delaying += self._clock() - begun

    def leave(self, seconds: float) -> None:
        """An answer is over, which took so long."""
        with self._changed:
            self._answers -= 1
            self.answering += seconds
            self._start()
            self._changed.notify_all()

    def show(self, episode: Episode) -> None:
        """An answer to learn from."""
        with self._changed:
            for pupil, _ in self._pupils.values():
                pupil.show(episode)

    @contextmanager
    def still(self) -> Iterator[None]:
        """No step runs, and nothing that was learnt changes."""
        with self._changed:
            while self._busy:
                self._changed.wait()
            yield

    def wait(self, seconds: float | None = None) -> bool:
        """Until there is nothing left to learn, in an idle moment; whether that was reached."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._busy or self._next()), seconds)

    def learned(self) -> list[Learned]:
        """What each pupil has learnt."""
        with self.still():
            return [
                Learned(
                    name,
                    pupil.step.steps,
                    pupil.loss,
                    pupil.without,
                    pupil.guard.returns,
                    pupil.before.rate,
                    pupil.after.rate,
                    pupil.waits,
                    self.learning,
                    sum(array.nbytes for array in pupil.step.adapters.values()),
                    saved.path,
                    saved.bytes,
                    pupil.fault or saved.fault,
                )
                for name, (pupil, saved) in self._pupils.items()
            ]

    def forget(self) -> None:
        """Forget all that was learnt, and delete the files. Raises OSError for one that cannot be deleted."""
        with self.still():
            for pupil, saved in self._pupils.values():
                pupil.forget()
                saved.delete()
            self.learning = 0.0

    def save(self) -> None:
        """Keep what was learnt for the next session."""
        with self.still():
            for pupil, saved in self._pupils.values():
                saved.save(pupil)

    def close(self) -> None:
        """End the thread, after the step that runs."""
        atexit.unregister(self.close)
        with self._changed:
            self._over = True
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _start(self) -> None:
        self._over = False
        if self._thread is None and self._pupils:
            self._thread = Thread(target=self._work, name="paceline-adaptation", daemon=True)
            self._thread.start()
            atexit.register(self.close)  # a step that the end of Python cuts off would abort the process

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._over and (self._answers or not self._next()):
                    self._changed.wait()
                if self._over:
                    return
                self._busy = True
            try:
                self._step()
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _next(self) -> Pupil | None:
        return next((pupil for pupil, _ in self._pupils.values() if pupil.waits), None)

    def _step(self) -> bool:
        """One step of whoever has something to learn; False where nobody has."""
        pupil = self._next()
        if pupil is None:
            return False
        begun = self._clock()
        try:
            pupil.learn()
        except Exception as error:  # learning serves speed alone: answers go on without
            pupil.give_up(error)
        self.learning += self._clock() - begun
        return True
