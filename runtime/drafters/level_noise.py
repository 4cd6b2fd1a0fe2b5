"""What is added to logits before the tokens of several levels are chosen in one call, as the rule in use wants it.

Tokens are chosen inside the graph, so all that speaks for or against a token must be known before the call: bias, bans,
what frequency and presence penalties take, and noise. What depends on the logits themselves (repetition penalty, top-k,
top-p, min-p), or on tokens that are being drafted, is left to the target, which decides in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from paceline.runtime.drafters.draw import DOUBT
from paceline.runtime.law import Law
from paceline.runtime.model.head import Floats, Ids
from paceline.runtime.request import Noise, Request, Sampling
from paceline.runtime.rules.laws import LawMaker, LogitsError
from paceline.runtime.rules.noise import GumbelNoise


class Noised(Protocol):
    """What drafts several levels in one call: a head, or a draft model."""

    noise: Floats
    kept: Floats
    ids: Ids


class LevelNoise(Protocol):
    """Fills `Noised.noise` for one request."""

    @property
    def sampled(self) -> bool:
        """Whether the tokens are draws from `law`: none may be dropped after it was drawn, whatever it is."""

    @property
    def scale(self) -> float:
        """Chances that picks are accepted are in proportion to `exp(scale * score)`."""

    def write(self, tokens: Sequence[int], levels: int) -> None:
        """For the levels that follow a text."""

    def law(self, scores: Floats, level: int) -> Law | None:
        """What the token of a level (0 is the first) was drawn from; None where the scores are no numbers."""


def make_noise(request: Request, head: Noised, rng: np.random.Generator) -> LevelNoise:
    """The noise that suits a request's rule. rng: the drafter's own."""
    sampling = request.sampling
    shift = _Shift(request, head)
    if sampling.temperature == 0:
        return _Picked(head, shift, 1 / DOUBT)
    if request.accept == "coupled":
        noise = request.noise or GumbelNoise(request.seed, request.number)
        return _Coupled(head, shift, noise, sampling.temperature)
    if request.accept in ("rejection", "block"):
        return _Sampled(head, shift, rng, sampling.temperature)
    return _Picked(head, shift, 1 / sampling.temperature)


class _Shift:
    """What a request adds to logits whatever they are. Of levels below the first only what holds for any history."""

    def __init__(self, request: Request, head: Noised) -> None:
        sampling, self._ids = request.sampling, head.ids
        later = replace(sampling, phrases={}, no_repeat_ngram=0)
        self._first, self._later = (
            LawMaker(s, request.prompt_length, "the draft head") for s in (sampling, later)
        )
        self._same = later == sampling
        self._nothing = np.zeros(int(head.ids[-1]) + 1, np.float32)

    def rows(self, tokens: Sequence[int]) -> tuple[Floats, Floats] | None:
        """float32[V] for the first level and for those below it; None where nothing is added."""
        first = self._first.adjust(self._nothing, tokens)
        if first is self._nothing:
            return None
        later = first if self._same else self._later.adjust(self._nothing, tokens)
        return first[self._ids], later[self._ids]

    def add(self, to: Floats, tokens: Sequence[int]) -> None:
        """To the rows of levels from the first on."""
        if (rows := self.rows(tokens)) is not None:
            to[0] += rows[0]
            to[1:] += rows[1]


class _Picked:
    """The likeliest tokens."""

    sampled = False

    def __init__(self, head: Noised, shift: _Shift, scale: float) -> None:
        self._head, self._shift, self.scale = head, shift, scale
        head.noise.fill(0)

    def write(self, tokens: Sequence[int], levels: int) -> None:
        """Nothing but what the request adds."""
        if (rows := self._shift.rows(tokens)) is not None:
            self._head.noise[0] = rows[0]
            self._head.noise[1:levels] = rows[1]

    def law(self, scores: Floats, level: int) -> Law | None:
        """Picks have none."""
        return None


class _Coupled:
    """The tokens that win with the noise that the target will choose with.

    The noise of a place is kept: what one round did not reach the next one asks for again.
    """

    sampled = False
    scale = 1 / DOUBT

    def __init__(self, head: Noised, shift: _Shift, noise: Noise, temperature: float) -> None:
        self._head, self._shift, self._noise = head, shift, noise
        self._temperature = np.float32(temperature)
        self._places = [-1] * len(head.kept)

    def write(self, tokens: Sequence[int], levels: int) -> None:
        """By the places of the tokens that are chosen: the first is that after the root."""
        head, places = self._head, self._places
        for level, place in enumerate(range(len(tokens), len(tokens) + levels)):
            at = place % len(places)
            if places[at] != place:
                np.multiply(self._noise.roughly(place, head.ids), self._temperature, out=head.kept[at])
                places[at] = place
            head.noise[level] = head.kept[at]
        self._shift.add(head.noise[:levels], tokens)

    def law(self, scores: Floats, level: int) -> Law | None:
        """Picks have none."""
        return None


class _Sampled:
    """True draws from `softmax(logits / temperature)`, by fresh Gumbel noise: the largest sum is such a draw."""

    sampled = True
    scale = 1.0

    def __init__(self, head: Noised, shift: _Shift, rng: np.random.Generator, temperature: float) -> None:
        self._head, self._shift, self._rng, self._temperature = head, shift, rng, np.float32(temperature)
        self._maker = LawMaker(Sampling(temperature=temperature), 0, "the draft head")

    def write(self, tokens: Sequence[int], levels: int) -> None:
        """New noise; what it was is kept for the law."""
        head = self._head
        drawn = head.kept[:levels]
        self._rng.standard_exponential(dtype=np.float32, out=drawn)
        np.log(np.maximum(drawn, _LEAST, out=drawn), out=drawn)
        drawn *= -self._temperature
        head.noise[:levels] = drawn
        self._shift.add(head.noise[:levels], tokens)

    def law(self, scores: Floats, level: int) -> Law | None:
        """Over ids of the target."""
        try:
            found = self._maker.law(scores[level] - self._head.kept[level], ())
        except LogitsError:
            return None
        return Law(self._head.ids[found.ids], found.probs)


_LEAST = np.float32(1e-30)
"""The logarithm of 0 is no number."""
