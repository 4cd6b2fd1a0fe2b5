"""A thread for what drafters do while the target's pass runs."""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable
from threading import Thread
from time import perf_counter as clock
from typing import Protocol

Work = Callable[[Callable[[], bool]], None]
"""Is given a function that says whether to come to an end, and asks it between its passes."""


class Beside(Protocol):
    """Where a drafter leaves work for the time of the target's pass."""

    def later(self, work: Work) -> None:
        """To be done beside the pass that comes next."""

    def begin(self) -> None:
        """The pass begins: begin with all that was left."""

    def rest(self) -> float:
        """Let it come to an end, and drop what did not begin; returns the seconds that took."""


class Worker:
    """One thread of a session. It begins with the first work and ends with `close`.

    All but the work itself is for one other thread. Work that raises is over; what it raised stands in `failed`.
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._given, self._done = allocate_lock(), allocate_lock()
        self._given.acquire()
        self._done.acquire()
        self._left: list[Work] = []
        self._works: list[Work] | None = None
        self._busy = self._stopping = False
        self.failed: BaseException | None = None

    def later(self, work: Work) -> None:
        """See `Beside`."""
        self._left.append(work)

    def begin(self) -> None:
        """See `Beside`."""
        if not self._left or self._busy:
            return
        if self._thread is None:
            self._thread = Thread(target=self._run, name="drafts", daemon=True)
            self._thread.start()
        self._works, self._left = self._left, []
        self._busy, self._stopping = True, False
        self._given.release()

    def rest(self) -> float:
        """See `Beside`. An interrupt may pass while it waits: then the work is still to be ended."""
        self._left.clear()
        if not self._busy:
            return 0.0
        begun = clock()
        self._stopping = True
        self._done.acquire()
        self._busy = False
        return clock() - begun

    def close(self) -> None:
        """End the thread once its work has ended."""
        self.rest()
        if self._thread is not None:
            self._works = None
            self._given.release()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while True:
            self._given.acquire()
            works, self._works = self._works, None
            if works is None:
                return
            try:
                for work in works:
                    work(self._told)
            except BaseException as error:  # a drafter that fails costs speed, never the answer
                self.failed = error
            del works
            self._done.release()

    def _told(self) -> bool:
        return self._stopping
