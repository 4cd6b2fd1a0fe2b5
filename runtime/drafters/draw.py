"""How a draft model's row becomes children of a node, as the acceptance rule in use wants them, and how often such
children were accepted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, isfinite, isnan
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from paceline.runtime.contracts import Logits, Outcome
from paceline.runtime.law import Law
from paceline.runtime.ops.vocabulary import best_of, exp_sum
from paceline.runtime.request import Noise, Request, Sampling
from paceline.runtime.rules.laws import LawMaker, LogitsError, largest
from paceline.runtime.rules.noise import GumbelNoise
from paceline.runtime.tree import proposers


class Children(NamedTuple):
    """Distinct tokens for the children of one node, the most promising (or first drawn) first.

    scores: estimates in (0, 1] of the chance that the target accepts each. law: what they were SAMPLED from
    without replacement, in this order; None where they were picked.
    """

    tokens: tuple[int, ...]
    scores: tuple[float, ...]
    law: Law | None


class Draw(Protocol):
    """Chooses children from rows of a draft model."""

    @property
    def sampled(self) -> bool:
        """Whether children are draws: none may be dropped after it was drawn, whatever it is."""

    def children(self, row: Logits, history: Sequence[int], count: int) -> Children:
        """At most `count` (1 or more) children of the node that ends `history`; none where the row is NaN."""


def make_draw(request: Request, vocab_draft: int, rng: np.random.Generator, picks: bool = False) -> Draw:
    """The draw that suits a request's rule.

    vocab_draft: ids from here on are never proposed (padding that the target lacks). rng: the drafter's own.
    picks: never sample, whatever the rule: for drafters that drop nodes once they have seen them.
    """
    sampling = request.sampling
    if sampling.temperature == 0:
        return GreedyDraw(LawMaker(sampling, request.prompt_length, "the draft model"), vocab_draft)
    if request.accept == "coupled":
        noise = request.noise or GumbelNoise(request.seed, request.number)
        return CoupledDraw(_maker(request, sampling, _PICKED), noise, vocab_draft)
    if request.accept in ("rejection", "block") and not picks:
        return SampledDraw(_maker(request, sampling, _SAMPLED), rng, vocab_draft)
    return PickedDraw(_maker(request, sampling, _PICKED), vocab_draft)


@dataclass(frozen=True, slots=True)
class GreedyDraw:
    """For greedy decoding: the largest logits.

    A score is the chance to stay the largest, if the target's logits differ from the drafter's by about DOUBT.
    """

    maker: LawMaker
    vocab: int
    sampled: bool = False

    def children(self, row: Logits, history: Sequence[int], count: int) -> Children:
        """Ties go to the lowest id, as in the greedy choice."""
        adjusted = self.maker.adjust(row[: self.vocab], history)
        if count == 1:
            token = int(adjusted.argmax())  # a NaN, if there is one
            if not isfinite(top := float(adjusted[token])):
                return _NONE
            return Children((token,), (max(1 / exp_sum(adjusted, top, 1 / DOUBT), _UNLIKELY),), None)
        ids, values, [weight] = best_of(adjusted[None], count, 1 / DOUBT)
        found = tuple(chances(values[0].tolist(), weight, 1 / DOUBT))
        return Children(tuple(ids[0].tolist()), found, None) if found else _NONE

    def best(self, rows: Logits) -> list[Children]:
        """One child for each of these rows, float32[n, V], in one look; none at all where histories change rows."""
        if not self.maker.plain:
            return []
        ids, _, weights = best_of(rows[:, : self.vocab], 1, 1 / DOUBT)
        return [
            _NONE if isnan(weight) else Children((token,), (max(1 / weight, _UNLIKELY),), None)
            for token, weight in zip(ids[:, 0].tolist(), weights, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class PickedDraw:
    """The likeliest tokens; a score is their probability in the maker's law."""

    maker: LawMaker
    vocab: int
    sampled: bool = False

    def children(self, row: Logits, history: Sequence[int], count: int) -> Children:
        """Ties go to the lowest id, as in the greedy choice."""
        law = _law(self.maker, row[: self.vocab], history)
        if law is None:
            return _NONE
        return _best(law, law.probs, law.probs, count)


@dataclass(frozen=True, slots=True)
class CoupledDraw:
    """The tokens that win with the noise that the target will choose with.

    A score is the chance to win still, if the target's logits differ from the drafter's by about DOUBT.
    """

    maker: LawMaker
    noise: Noise
    vocab: int
    sampled: bool = False

    def children(self, row: Logits, history: Sequence[int], count: int) -> Children:
        """Only the likeliest ids of the draft row are looked at: what the target says is not affected."""
        law = _law(self.maker, row[: self.vocab], history)
        if law is None:
            return _NONE
        raised = np.log(law.probs) + self.noise.after(history, law.ids)
        weights = np.exp((raised - raised.max()) * (self.maker.sampling.temperature / DOUBT))
        return _best(law, raised, weights / weights.sum(), count)


@dataclass(frozen=True, slots=True)
class SampledDraw:
    """Draws without replacement from the draft model's law, by the race of exponential clocks.

    The n-th score is the chance that the n-th draw is tested and accepted. It depends on the law alone, so a
    drafter that stops at low scores does not look at what was drawn.
    """

    maker: LawMaker
    rng: np.random.Generator
    vocab: int
    sampled: bool = True

    def children(self, row: Logits, history: Sequence[int], count: int) -> Children:
        """Fewer than `count` where the law holds fewer tokens."""
        law = _law(self.maker, row[: self.vocab], history)
        if law is None:
            return _NONE
        speed = law.probs / self.rng.exponential(size=len(law.ids))
        tokens = law.ids[largest(speed, min(count, len(speed)))].tolist()
        agree = agreement(law, self.maker.sampling.temperature)
        scores = [max(agree * (1 - agree) ** n, _UNLIKELY) for n in range(len(tokens))]
        return Children(tuple(tokens), tuple(scores), law)


def chances(values: Sequence[float], weight: float, scale: float) -> Iterator[float]:
    """Of a row's largest values, in (0, 1]: their shares of its `weight`, the sum of `exp(scale * (row - largest))`.

    None where either is no number.
    """
    top = values[0]
    if isfinite(top) and not isnan(weight):
        for value in values:
            yield max(exp((value - top) * scale) / weight, _UNLIKELY)


def agreement(law: Law, temperature: float) -> float:
    """The chance that a draw from a draft model's law is accepted, guessed from how peaked the law is."""
    agree: float = float(law.probs @ law.probs) ** (_OVERLAP / temperature)
    return agree


def corrected(score: float, odds: float) -> float:
    """A score in (0, 1] whose odds are multiplied by `exp(odds)`: what is predicted of acceptance besides it.

    odds: of the row that a token is drawn from, before it is drawn, so that law 5 holds where drafts stop by it.
    """
    return max(score / (score + (1 - score) * exp(min(-odds, _LARGEST))), _UNLIKELY)


def _best(law: Law, order: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], count: int) -> Children:
    places = largest(order, min(count, len(order)))
    chances = np.maximum(scores[places], _UNLIKELY)
    return Children(tuple(law.ids[places].tolist()), tuple(chances.tolist()), None)


def _law(maker: LawMaker, row: Logits, history: Sequence[int]) -> Law | None:
    try:
        return maker.law(row, history)
    except LogitsError:
        return None  # a broken drafter slows decoding down, it does not stop it


def _maker(request: Request, sampling: Sampling, width: int) -> LawMaker:
    narrow = replace(sampling, top_k=min(sampling.top_k or width, width))
    return LawMaker(narrow, request.prompt_length, "the draft model")


class Acceptance:
    """The chance that a drafted token is accepted if the one before it was, given its drafter's own estimate.

    Estimates fall into ten bins for each depth. A bin starts at the estimate itself, counts what becomes of its
    tokens, and never promises less than a bin of lower estimates (pool adjacent violators). first: what is usual by
    depth, as somebody measured it before.
    """

    def __init__(self, first: Sequence[float] = ()) -> None:
        middles = [(at + 0.5) / BINS for at in range(BINS)]
        self._true = [[_STRENGTH * chance for chance in middles] for _ in range(_DEPTHS)]
        self._tried = [[_STRENGTH] * BINS for _ in range(_DEPTHS)]
        self._table = [[*middles, middles[-1]] for _ in range(_DEPTHS)]
        usual = [*first, *[USUAL] * _DEPTHS][:_DEPTHS]
        self._mean = [[chance * _STRENGTH, _STRENGTH] for chance in usual]
        self._new = 0

    def chance(self, depth: int, estimate: float) -> float:
        """depth: 1 for a child of the root."""
        return self._table[depth - 1 if depth < _DEPTHS else -1][int(estimate * BINS)]

    def bins(self, depth: int) -> Sequence[float]:
        """The chances of estimates from 0 to 1 in equal steps, the last one of 1 itself."""
        return self._table[depth - 1 if depth < _DEPTHS else -1]

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
            named = tree.sources[node]
            if not estimate or parent not in level or (named != source and proposers(named)[0] != source):
                continue
            depth = min(level[parent], _DEPTHS - 1)
            accepted = node in level
            true, tried, at = self._true[depth], self._tried[depth], min(int(estimate * BINS), BINS - 1)
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
            rates = isotonic(true, tried)
            self._table[depth] = [*rates, rates[-1]]


def isotonic(true: list[float], tried: list[float]) -> list[float]:
    """true / tried, made to rise: neighbours that fall are pooled."""
    rates = [t / n for t, n in zip(true, tried, strict=True)]
    if all(low <= high for low, high in pairwise(rates)):
        return rates
    pools: list[list[float]] = []  # true, tried, bins
    for t, n in zip(true, tried, strict=True):
        pools.append([t, n, 1])
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] > pools[-1][0] * pools[-2][1]:
            t, n, bins = pools.pop()
            pools[-1] = [pools[-1][0] + t, pools[-1][1] + n, pools[-1][2] + bins]
    rates = []
    for t, n, bins in pools:
        rates += [t / n] * int(bins)
    return rates


_NONE = Children((), (), None)
# How many of the likeliest ids a draft law keeps where the user's choices keep more: a wide row costs more
# than its tail brings. The rules take any law, as long as it is the one that was sampled.
_PICKED = 256
_SAMPLED = 1024
# Fitted once, see docs/sampling.md: how far a drafter's logits are from the target's, as the width of Gumbel
# noise, and how its law's peakedness tells the mass that both laws share.
DOUBT = 0.7
_OVERLAP = 1 / 3
_UNLIKELY = 1e-9
_LARGEST = 50.0
BINS = 10
USUAL = 0.7
"""Acceptance of a token of which nothing is known."""
_DEPTHS = 4
"""Levels from here on are judged together."""
_STRENGTH = 6.0
"""Observations that the drafter's own estimate counts as."""
_MEMORY = 160.0
"""Observations of a bin after which older ones fade."""
_PATIENCE = 12
"""Judged tokens between two looks at the counts."""
