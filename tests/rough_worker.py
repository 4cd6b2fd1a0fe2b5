"""A session whose work beside the target's pass is delayed and killed, over many rounds."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from paceline import load
from paceline.runtime import assemble
from paceline.runtime.beside import Lent, Meanwhile, Work, Worker
from paceline.runtime.contracts import Early
from paceline.runtime.request import Sampling
from paceline.runtime.tree import TokenTree


class KilledError(RuntimeError):
    """As if the device of the draft model were gone."""


class Rough(Worker):
    """Sleeps at random on both sides, and ends works at a random line of any of the functions that they run."""

    def __init__(self, seed: int, kill: float) -> None:
        super().__init__()
        self._here, self._there = (np.random.default_rng([seed, side]) for side in (0, 1))
        self._kill = kill
        self.killed = 0

    def later(self, work: Work, lent: Lent | None = None) -> None:
        """It sleeps first, and may be killed later."""

        def rough(meanwhile: Meanwhile) -> None:
            time.sleep(self._there.exponential(2e-4))
            if self._there.random() >= self._kill:
                return work(meanwhile)
            left = int(self._there.exponential(300))

            def count(frame: FrameType, event: str, value: Any) -> Any:
                nonlocal left
                if (
                    frame.f_code.co_name == "__del__"
                ):  # runs whenever it likes, and what it raises ends nothing
                    return None
                left -= 1
                if left < 0 and event == "line":
                    sys.settrace(None)
                    self.killed += 1
                    raise KilledError("the device is gone")
                return count

            sys.settrace(count)
            try:
                work(meanwhile)
            finally:
                sys.settrace(None)

        super().later(rough, lent)

    def begin(self, tree: TokenTree) -> None:
        super().begin(tree)
        time.sleep(self._here.exponential(2e-4))

    def hear(self, early: Early) -> None:
        time.sleep(self._here.exponential(1e-4))
        super().hear(early)

    def rest(self) -> float:
        time.sleep(self._here.exponential(1e-4))
        return super().rest()


@dataclass(slots=True)
class Done:
    """What came of it."""

    rounds: int = 0
    hits: int = 0
    killed: int = 0


def endure(
    bundle: Path,
    prompts: Sequence[str],
    sampling: Sampling,
    rounds: int,
    kill: float,
    most: int = 40,
    drafter: str = "chain",
    drafter_bundle: Path | None = None,
) -> Done:
    """Answers of a drafter that goes on beside the target, so many rounds: each is plain decoding's."""
    ask = {"sampling": sampling, "seed": 5, "max_tokens": most}
    with load(bundle, drafter="none", threads=1) as plain:
        expected = [plain.generate(prompt, **ask).read().tokens for prompt in prompts]  # type: ignore[arg-type]
    done = Done()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "Worker", partial(Rough, 7, kill))
        session = load(bundle, drafter=drafter, drafter_bundle=drafter_bundle, threads=2, mirror="on")
    with session:
        while done.rounds < rounds:
            for prompt, tokens in zip(prompts, expected, strict=True):
                answer = session.generate(prompt, **ask).read()  # type: ignore[arg-type]
                assert answer.tokens == tokens
                assert answer.stats.beside is not None
                done.rounds += answer.stats.rounds
                done.hits += answer.stats.beside.hits
        rough = session._workshop.beside
        assert isinstance(rough, Rough)
        done.killed = rough.killed
    return done
