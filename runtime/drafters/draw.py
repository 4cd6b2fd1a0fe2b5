"""How a draft model's row becomes children of a node, so that the acceptance rule in use applies to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan
from typing import Protocol

import numpy as np
import numpy.typing as npt

from paceline.runtime.contracts import Logits
from paceline.runtime.law import Law
from paceline.runtime.ops.vocabulary import exp_sum, top_k
from paceline.runtime.request import Request, Sampling
from paceline.runtime.rules.laws import LawMaker, LogitsError
from paceline.runtime.rules.noise import GumbelNoise
from paceline.runtime.rules.truncation import largest


@dataclass(frozen=True, slots=True)
class Children:
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
        noise = GumbelNoise(request.seed, request.number)
        return CoupledDraw(_maker(request, sampling, _PICKED), noise, vocab_draft)
    if request.accept in ("rejection", "block") and not picks:
        return SampledDraw(_maker(request, sampling, _SAMPLED), rng, vocab_draft)
    return PickedDraw(_maker(request, sampling, _PICKED), vocab_draft)


@dataclass(frozen=True, slots=True)
class GreedyDraw:
    """For greedy decoding: the largest logits.

    A score is the chance to stay the largest, if the target's logits differ from the drafter's by about _DOUBT.
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
            return Children((token,), (max(1 / exp_sum(adjusted, top, float(_SCALE)), _UNLIKELY),), None)
        ids, values = top_k(adjusted, count)
        top = float(values[0, 0])
        if not isfinite(top) or isnan(weight := exp_sum(adjusted, top, float(_SCALE))):
            return _NONE
        chances = np.exp((values[0] - top) * _SCALE) / weight
        return Children(tuple(ids[0].tolist()), tuple(np.maximum(chances, _UNLIKELY).tolist()), None)


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

    A score is the chance to win still, if the target's logits differ from the drafter's by about _DOUBT.
    """

    maker: LawMaker
    noise: GumbelNoise
    vocab: int
    sampled: bool = False

    def children(self, row: Logits, history: Sequence[int], count: int) -> Children:
        """Only the likeliest ids of the draft row are looked at: what the target says is not affected."""
        law = _law(self.maker, row[: self.vocab], history)
        if law is None:
            return _NONE
        raised = np.log(law.probs) + self.noise.at(len(history), law.ids)
        chances = np.exp((raised - raised.max()) * (self.maker.sampling.temperature / _DOUBT))
        return _best(law, raised, chances / chances.sum(), count)


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
        agree = float(law.probs @ law.probs) ** (_OVERLAP / self.maker.sampling.temperature)
        scores = [max(agree * (1 - agree) ** n, _UNLIKELY) for n in range(len(tokens))]
        return Children(tuple(tokens), tuple(scores), law)


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


_NONE = Children((), (), None)
# How many of the likeliest ids a draft law keeps where the user's choices keep more: a wide row costs more
# than its tail brings. The rules take any law, as long as it is the one that was sampled.
_PICKED = 256
_SAMPLED = 1024
# Fitted once, see docs/sampling.md: how far a drafter's logits are from the target's, as the width of Gumbel
# noise, and how its law's peakedness tells the mass that both laws share.
_DOUBT = 0.7
_SCALE = np.float32(1 / _DOUBT)
_OVERLAP = 1 / 3
_UNLIKELY = 1e-9
