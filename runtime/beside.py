"""A thread for what drafters do while the target's pass runs."""

from __future__ import annotations

from _thread import LockType, allocate_lock
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from threading import Thread
from time import perf_counter as clock
from typing import Protocol

from paceline.runtime.contracts import Early
from paceline.runtime.timeline import BESIDE, TARGET, Timeline
from paceline.runtime.tree import TokenTree


class Meanwhile(Protocol):
    """The pass of the target that work runs beside."""

    @property
    def tree(self) -> TokenTree:
        """What the target looks at."""

    @property
    def early(self) -> Early | None:
        """What it says early of what follows, once it has said it."""

    def over(self) -> bool:
        """Whether work is to come to an end. It asks between its own passes."""

    def left(self) -> float:
        """Seconds until that is probably so, by earlier passes over as many rows; without end where there were none."""

    def wait(self) -> None:
        """Until the target says something early, or work is to come to an end."""


Work = Callable[[Meanwhile], None]


@dataclass(slots=True)
class Tally:
    """What came of the work beside the target's passes of an answer.

    hits: proposals that went on with what was drafted there. misses: those that found nothing of what the target said;
    of both `foreseen` are those where that was at least named. hit_seconds, miss_seconds: what these proposals still
    took. passes, seconds: of the draft model there. failure: how work ended that was not done, the first of them.
    """

    hits: int = 0
    misses: int = 0
    foreseen: int = 0
    hit_seconds: float = 0.0
    miss_seconds: float = 0.0
    passes: int = 0
    seconds: float = 0.0
    failure: str | None = None


class Lent(Protocol):
    """What one thread alone may run at a time."""

    def lend(self, thread: int) -> None:
        """To this one, by its number."""

    def take_back(self) -> None:
        """From whoever had it, alive or not."""


class Aside(Protocol):
    """Where a drafter leaves work for the time of the target's pass."""

    @property
    def tally(self) -> Tally:
        """Of the answer that runs."""

    @property
    def timeline(self) -> Timeline | None:
        """The same, where one was asked for."""

    def later(self, work: Work, lent: Lent | None = None) -> None:
        """To be done beside the pass that comes next, by a thread that alone may run what is lent until it rests."""


class Beside(Aside, Protocol):
    """The same as the loop sees it; who begins an answer gives it what is counted and told of it."""

    tally: Tally
    timeline: Timeline | None

    def begin(self, tree: TokenTree) -> None:
        """The pass over this tree begins: begin with all that was left."""

    def hear(self, early: Early) -> None:
        """What the pass says early."""

    def rest(self) -> float:
        """Let it come to an end, and drop what did not begin; returns the seconds that took."""


class Worker:
    """One thread of a session. It begins with the first work and ends with `close`.

    All but the work itself is for one other thread. Work that raises is over, and so is that of a thread that has
    died, in whose place another one begins.
    """

    def __init__(self) -> None:
        self.tally = Tally()
        self.timeline: Timeline | None = None
        self._thread: Thread | None = None
        self._left: list[Work] = []
        self._lent: list[Lent] = []
        self._works: list[Work] | None = None
        self._busy = self._stopping = False
        self._news = allocate_lock()
        """Not held once there is something new for work to see."""
        self._news.acquire()
        self._began = 0.0
        self._lasted: dict[int, float] = {}
        """Seconds of a pass of the target beside work, by its rows."""
        self.tree = TokenTree.root(0)
        self.early: Early | None = None

    def later(self, work: Work, lent: Lent | None = None) -> None:
        """See `Beside`."""
        self._left.append(work)
        if lent is not None and lent not in self._lent:
            self._lent.append(lent)

    def begin(self, tree: TokenTree) -> None:
        """See `Beside`."""
        if not self._left or self._busy:
            return
        if self._thread is None or not self._thread.is_alive():
            self._start()
        self.tree, self.early, self._began = tree, None, clock()
        self._news.acquire(blocking=False)
        self._works, self._left = self._left, []
        self._busy, self._stopping = True, False
        assert self._thread is not None
        for lent in self._lent:
            lent.lend(self._thread.ident or 0)
        self._given.release()

    def _start(self) -> None:
        self._given, self._done = allocate_lock(), allocate_lock()
        self._given.acquire()
        self._done.acquire()
        self._thread = Thread(target=self._run, args=(self._given, self._done), name="drafts", daemon=True)
        self._thread.start()

    def hear(self, early: Early) -> None:
        """See `Beside`. The arrays are the caller's own: what is kept is a copy."""
        if self._busy:
            self.early = Early(early.ids.copy(), early.chances.copy())
            self._tell()
            if self.timeline is not None:
                self.timeline.mark(TARGET, "exit", rows=len(early.ids))

    def _tell(self) -> None:
        if self._news.locked():
            self._news.release()

    def over(self) -> bool:
        """See `Meanwhile`."""
        return self._stopping

    def left(self) -> float:
        """See `Meanwhile`."""
        lasted = self._lasted.get(len(self.tree))
        return inf if lasted is None else max(self._began + lasted - clock(), 0.0)

    def wait(self) -> None:
        """See `Meanwhile`."""
        self._news.acquire()

    def rest(self) -> float:
        """See `Beside`. An interrupt may pass while it waits: then the work is still to be ended."""
        self._left.clear()
        if not self._busy:
            self._lent.clear()
            return 0.0
        begun, rows = clock(), len(self.tree)
        took = begun - self._began
        self._lasted[rows] = took + _OLD * (self._lasted.get(rows, took) - took)
        self._stopping = True
        self._tell()
        while not self._done.acquire(timeout=_LOOK) and self._thread is not None:
            if not self._thread.is_alive() and not self._done.acquire(blocking=False):
                self._failed("its thread has ended")
                break
        self._busy = False
        while self._lent:  # not by the thread itself: it may be ended anywhere, and keep it
            self._lent.pop().take_back()
        return clock() - begun

    def close(self) -> None:
        """End the thread once its work has ended."""
        self.rest()
        if self._thread is not None:
            self._works = None
            self._given.release()
            self._thread.join()
            self._thread = None

    def _run(self, given: LockType, done: LockType) -> None:
        while True:
            given.acquire()
            works, self._works = self._works, None
            if works is None:
                return
            begun = clock()
            try:
                for work in works:
                    work(self)
            except BaseException as error:  # a drafter that fails costs speed, never the answer
                self._failed(f"{type(error).__name__}: {error}")
            ended = clock()
            self.tally.seconds += ended - begun
            if self.timeline is not None:
                self.timeline.add(BESIDE, "work", begun, ended)
            del works
            done.release()

    def _failed(self, how: str) -> None:
        self.tally.failure = self.tally.failure or " ".join(how.split())


_OLD = 0.8
"""Of what is known of the target's passes so much stays with the next one."""
_LOOK = 1.0
"""Seconds between two looks whether the thread lives that is waited for."""
