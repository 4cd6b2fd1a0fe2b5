"""From what a drafter believes of a token to how often such tokens were accepted: isotonic, by depth, fading."""

from __future__ import annotations

from paceline.runtime.contracts import Outcome
from paceline.runtime.tree import proposers

_BINS = 10
_DEPTHS = 4
"""Levels from here on are judged together."""
_STRENGTH = 6.0
"""Observations that the drafter's own estimate counts as."""
_MEMORY = 160.0
"""Observations of a bin after which older ones fade."""
_PATIENCE = 12
"""Judged tokens between two looks at the counts."""


class Acceptance:
    """The chance that a drafted token is accepted if the one before it was, given its drafter's own estimate.

    Estimates fall into ten bins for each depth. A bin starts at the estimate itself, counts what becomes of its
    tokens, and never promises less than a bin of lower estimates (pool adjacent violators).
    """

    def __init__(self) -> None:
        middles = [(at + 0.5) / _BINS for at in range(_BINS)]
        self._true = [[_STRENGTH * chance for chance in middles] for _ in range(_DEPTHS)]
        self._tried = [[_STRENGTH] * _BINS for _ in range(_DEPTHS)]
        self._table = [list(middles) for _ in range(_DEPTHS)]
        self._mean = [[0.7 * _STRENGTH, _STRENGTH] for _ in range(_DEPTHS)]
        self._new = 0

    def chance(self, depth: int, estimate: float) -> float:
        """depth: 1 for a child of the root."""
        table = self._table[min(depth, _DEPTHS) - 1]
        return table[min(int(estimate * _BINS), _BINS - 1)]

    def usual(self, depth: int) -> float:
        """The chance at a depth when nothing else is known: the first child's."""
        true, tried = self._mean[min(depth, _DEPTHS) - 1]
        return true / tried

    def learn(self, outcome: Outcome, source: str) -> None:
        """Every child of an accepted node was judged; those count that this source proposed, and estimated."""
        tree, path = outcome.tree, outcome.verdict.path
        if not tree.scores or not len(outcome.scored.logits):
            return
        level = dict(zip(path, range(len(path)), strict=True))
        parents = tree.parents.tolist()
        begun: set[int] = set()
        for node, estimate in enumerate(tree.scores):
            parent = parents[node]
            if not estimate or parent not in level or proposers(tree.sources[node])[0] != source:
                continue
            depth = min(level[parent], _DEPTHS - 1)
            accepted = node in level
            true, tried, at = self._true[depth], self._tried[depth], min(int(estimate * _BINS), _BINS - 1)
            true[at] += accepted
            tried[at] += 1.0
            if tried[at] > _MEMORY:
                true[at], tried[at] = true[at] / 2, tried[at] / 2
            self._new += 1
            if parent not in begun:
                begun.add(parent)
                mean = self._mean[depth]
                mean[0], mean[1] = 0.97 * mean[0] + accepted, 0.97 * mean[1] + 1
        if self._new >= _PATIENCE:
            self._new = 0
            self._refresh()

    def _refresh(self) -> None:
        for depth, (true, tried) in enumerate(zip(self._true, self._tried, strict=True)):
            self._table[depth] = isotonic(true, tried)


def isotonic(true: list[float], tried: list[float]) -> list[float]:
    """true / tried, made to rise: neighbours that fall are pooled."""
    pools: list[list[float]] = []  # true, tried, bins
    for t, n in zip(true, tried, strict=True):
        pools.append([t, n, 1])
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] > pools[-1][0] * pools[-2][1]:
            t, n, bins = pools.pop()
            pools[-1] = [pools[-1][0] + t, pools[-1][1] + n, pools[-1][2] + bins]
    rates: list[float] = []
    for t, n, bins in pools:
        rates += [t / n] * int(bins)
    return rates
