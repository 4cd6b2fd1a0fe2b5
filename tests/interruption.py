"""Ctrl-C at a chosen moment of a command: as many calls of functions into it, whatever the machine is busy with."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from paceline import main


@dataclass
class CtrlC:
    """Comes with the call or return number `at` after the command began, 0 never. `came`: where, outermost last."""

    at: int
    calls: int = 0
    came: list[str] = field(default_factory=list)

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        self.calls += 1
        if self.calls == self.at:
            sys.setprofile(None)
            at: FrameType | None = frame
            while at is not None:
                self.came.append(f"{at.f_code.co_filename}:{at.f_lineno} {at.f_code.co_name}")
                at = at.f_back
            signal.raise_signal(signal.SIGINT)


@contextmanager
def ctrl_c(at: int) -> Iterator[CtrlC]:
    """In the block, a command gets it."""
    press, run = CtrlC(at), main._run

    def interrupted(given: list[str]) -> int:
        sys.setprofile(press)
        try:
            return run(given)
        finally:
            sys.setprofile(None)

    main._run = interrupted
    try:
        yield press
    finally:
        main._run = run


def moments(calls: int, count: int, seed: int = 0) -> list[int]:
    """So many moments out of so many calls, half of them near the beginning, where more happens a call."""
    rng = random.Random(seed)
    return [int(calls ** rng.random()) if i % 2 else rng.randint(1, calls) for i in range(count)]
