"""Which blocks a draft can do without: swaps of the best set, and sets that a Bayesian model of their losses hopes for.

After SWIFT (2410.06916), whose model is a Gaussian process; here the loss of a set is the sum of its blocks' losses, in
logarithms, which a few hundred trials are enough for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_NOISE, _PRIOR = 0.1, 0.5
"""Of the logarithm of a set's agreement: what the sum leaves unexplained, and what a block may cost beforehand."""
_FLOOR = 0.005
_GOOD_ENOUGH = 0.98
_SWAPPED = 2
"""Blocks that a swap puts in place of others at most."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best set of blocks, by their numbers; the share of tokens that it chooses as the model; trials it took."""

    chosen: tuple[int, ...]
    agreement: float
    trials: int


def search(
    sizes: Sequence[int],
    share: float,
    score: Callable[[tuple[int, ...]], float],
    trials: int,
    seed: int = 0,
    report: Callable[[float], None] = lambda share: None,
) -> Found:
    """Leave out blocks that have `share` of all bytes, or just more, so that the score, 0 to 1, is best.

    sizes: bytes of each block that may go. Each is tried alone first, as long as that is half of the trials.
    """
    rng, tried = np.random.default_rng(seed), dict[tuple[int, ...], float]()
    best: tuple[tuple[int, ...], float] = ((), -1.0)  # a set of which no draft is right is one, too
    asked = share * sum(sizes)

    def attempt(chosen: tuple[int, ...], counts: bool = True) -> None:
        nonlocal best
        if chosen not in tried:
            tried[chosen] = score(chosen)
            report(len(tried) / trials)
        if counts and tried[chosen] > best[1]:
            best = chosen, tried[chosen]

    for block in rng.permutation(len(sizes))[: trials // 2].tolist():
        attempt((block,), counts=sizes[block] >= asked)
    attempt(_filled(_losses(tried, len(sizes), None), sizes, asked))
    stale = 0
    while len(tried) < trials and best[1] < _GOOD_ENOUGH and stale < 4 * trials:
        before = len(tried)
        if rng.random() < 0.5:
            attempt(_filled(_losses(tried, len(sizes), rng), sizes, asked))
        else:
            attempt(_swapped(best[0], sizes, asked, rng))
        stale = stale + 1 if len(tried) == before else 0
    return Found(best[0], best[1], len(tried))


def _losses(
    tried: dict[tuple[int, ...], float], count: int, rng: np.random.Generator | None
) -> npt.NDArray[np.float64]:
    """What each block costs, by a Bayesian linear model of all trials: its mean, or a draw from what is believed."""
    sets = np.zeros((len(tried), count))
    for row, chosen in enumerate(tried):
        sets[row, list(chosen)] = 1
    costs = -np.log(np.maximum([*tried.values()], _FLOOR))
    precision = sets.T @ sets / _NOISE**2 + np.eye(count) / _PRIOR**2
    mean = np.asarray(np.linalg.solve(precision, sets.T @ costs / _NOISE**2), np.float64)
    if rng is None:
        return mean
    mean += np.linalg.solve(np.linalg.cholesky(precision).T, rng.normal(size=count))
    return mean


def _filled(losses: npt.NDArray[np.float64], sizes: Sequence[int], asked: float) -> tuple[int, ...]:
    """The blocks that cost least for their bytes, until there are enough bytes."""
    order = sorted(range(len(sizes)), key=lambda block: losses[block] / max(sizes[block], 1))
    return _until(order, sizes, asked)


def _until(order: Sequence[int], sizes: Sequence[int], asked: float) -> tuple[int, ...]:
    chosen, held = list[int](), 0
    for block in order:
        if held >= asked:
            break
        chosen.append(block)
        held += sizes[block]
    return tuple(sorted(chosen))


def _swapped(
    best: tuple[int, ...], sizes: Sequence[int], asked: float, rng: np.random.Generator
) -> tuple[int, ...]:
    """The best set with one or two blocks in place of others."""
    others = [block for block in range(len(sizes)) if block not in best]
    count = min(1 + int(rng.integers(_SWAPPED)), len(best), len(others))
    if not count:
        return best
    fresh = rng.permutation(others).tolist()
    kept = rng.permutation(best)[count:].tolist()
    return _until([*fresh[:count], *kept, *fresh[count:]], sizes, asked)


def speed(accepted: Sequence[float], price: float, row: float) -> tuple[int, float]:
    """The depth at which a chain is fastest, and how many times as fast as plain decoding it is then.

    accepted: by depth, the share of drafted tokens that is accepted where all before were. price: of a draft pass, and
    row: of one more row to verify, in plain passes. Depth 0 is plain decoding: 1.
    """
    best, tokens, chance = (0, 1.0), 1.0, 1.0
    for depth, share in enumerate(accepted, 1):
        chance *= share
        tokens += chance
        best = max(best, (depth, tokens / (1 + depth * (price + row))), key=lambda found: found[1])
    return best if not math.isnan(best[1]) else (0, 1.0)
