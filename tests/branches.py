"""Every outcome of a randomised procedure with its exact probability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from paceline.runtime.law import Law

T = TypeVar("T")


class Branches:
    """Stands in for a random generator: each use is a fork, and a script says which way to go."""

    def __init__(self, script: Sequence[int]) -> None:
        self._script = script
        self.chance = 1.0
        self.taken: list[tuple[int, int]] = []

    def pick(self, chances: Sequence[float]) -> int:
        """An index that has a chance; impossible ones are no branches."""
        ways = [i for i, chance in enumerate(chances) if chance > 0]
        at = len(self.taken)
        turn = self._script[at] if at < len(self._script) else 0
        self.taken.append((turn, len(ways)))
        self.chance *= chances[ways[turn]]
        return ways[turn]

    def random(self) -> Uniform:
        """A number in [0, 1) of which only comparisons are ever known."""
        return Uniform(self, 1.0)

    def sample(self, law: Law) -> int:
        """What `Law.sample` does."""
        return int(law.ids[self.pick(law.probs.tolist())])


class Uniform:
    """A uniform number times a factor."""

    def __init__(self, branches: Branches, factor: float) -> None:
        self._branches, self._factor = branches, factor

    def __mul__(self, factor: float) -> Uniform:
        return Uniform(self._branches, self._factor * factor)

    def __lt__(self, bound: float) -> bool:
        below = min(1.0, bound / self._factor)
        return self._branches.pick((below, 1 - below)) == 0

    def __ge__(self, bound: float) -> bool:
        return not self < bound


def outcomes(run: Callable[[Branches], T]) -> Iterator[tuple[float, T]]:
    """(probability, result) of every way through `run`."""
    script: list[int] = []
    while True:
        branches = Branches(script)
        result = run(branches)
        yield branches.chance, result
        taken = branches.taken
        while taken and taken[-1][0] == taken[-1][1] - 1:
            taken.pop()
        if not taken:
            return
        script = [turn for turn, _ in taken]
        script[-1] += 1
