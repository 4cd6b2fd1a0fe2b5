"""What drafting beside the target's pass is worth, from what passes cost: the model behind `--mirror auto`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

DEEPEST = 8
"""Tokens of the longest chain that is thought of."""
MARGIN = 1.03
"""How many times as fast it has to be: costs are known to some hundredths."""
HITS, HIDDEN = {"exit": 0.9, "weight": 0.65, "fan": 0.7, "window": 0.5}, 0.8
"""What is usual where nothing was seen yet: how often the target says what was drafted beside it, by what is looked at,
and how much of that draft is then there already (docs/mirror.md)."""


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of a round of two models.

    serial: the target's pass where it has everything. first, rest: the same in two halves where the drafter has a part
    of the machine; the first one is 0 where the drafter need not wait for it. draft: of the drafts of a round. meet: of
    waiting for each other. hit: how often the target says what was drafted beside it. hidden: how much of a draft is
    then there already.
    """

    serial: float
    first: float
    rest: float
    draft: float
    meet: float = 0.0
    hit: float = HITS["weight"]
    hidden: float = HIDDEN

    @property
    def one_behind_the_other(self) -> float:
        """The seconds where drafting waits for the target."""
        return self.serial + self.draft

    @property
    def beside(self) -> float:
        """The seconds where it does not: a draft that was not foreseen is made anew."""
        left = 1 - self.hit * self.hidden
        return self.first + max(self.rest, self.draft) + self.meet + left * self.draft

    @property
    def gain(self) -> float:
        """How many times as fast the second way is."""
        return self.one_behind_the_other / self.beside


def tokens_of(chance: float, depth: int) -> float:
    """What a round of a chain yields, where each token is accepted with this chance if the one before it was."""
    return sum(chance**level for level in range(depth + 1))


def gain(
    together: Callable[[int], float],
    alone: Callable[[int], float],
    step: float,
    chance: float,
    hit: float,
    hidden: float,
) -> float:
    """How many times the tokens a second of the best chain before the target the best one beside it yields.

    together, alone: seconds of the target's pass by rows, with all threads and with one less, beside a draft model.
    step: seconds of a draft pass. chance: that a drafted token is accepted. hit, hidden: see `Round`.
    """

    def best(seconds: Callable[[Round], float]) -> float:
        depths = range(1, DEEPEST + 1)
        rounds = {d: Round(together(d + 1), 0.0, alone(d + 1), d * step, 0.0, hit, hidden) for d in depths}
        return max(tokens_of(chance, depth) / seconds(made) for depth, made in rounds.items())

    plain = 1 / together(1)
    return best(lambda made: made.beside) / max(best(lambda made: made.one_behind_the_other), plain)
