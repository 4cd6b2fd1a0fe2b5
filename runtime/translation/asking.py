"""A request as a draft model of another vocabulary must understand it: its penalties, bans and shared noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from paceline.runtime.request import Noise, Request, Sampling
from paceline.runtime.translation.mapping import VocabularyMap
from paceline.runtime.translation.ngrams import ROOT, NgramCache
from paceline.runtime.translation.reading import Reading

_MEAN = 0.5772
"""Of a standard Gumbel variable: what a piece gets whose token is not known yet."""


def translate_request(
    request: Request, reading: Reading, prompt_length: int, noise: Noise, hidden: frozenset[int] = frozenset()
) -> Request:
    """The same wishes in the draft model's tokens.

    prompt_length: of the prompt in draft tokens. hidden: draft tokens that may not be proposed. What holds for a token
    that several draft tokens spell cannot be said of any of them, and is left to the target.
    """
    return replace(
        request,
        sampling=_sampling(request.sampling, reading, hidden),
        prompt_length=prompt_length,
        noise=noise,
    )


def _sampling(sampling: Sampling, reading: Reading, hidden: frozenset[int]) -> Sampling:
    def single(token: int) -> int | None:
        run = reading.run_of(token)
        return run[0] if len(run) == 1 else None

    banned = {one for token in sampling.banned if (one := single(token)) is not None}
    phrases: dict[tuple[int, ...], float] = {}
    for phrase, bias in sampling.phrases.items():
        run = tuple([piece for token in phrase for piece in reading.run_of(token)])
        if run and single(phrase[-1]) is not None:
            phrases[run] = bias
    return replace(
        sampling,
        logit_bias={
            one: bias for token, bias in sampling.logit_bias.items() if (one := single(token)) is not None
        },
        banned=hidden | banned,
        not_before={one: least for t, least in sampling.not_before.items() if (one := single(t)) is not None},
        no_repeat_ngram=0,
        phrases=phrases,
    )


class TranslatedNoise:
    """The target's noise as draft tokens meet it: of the token that a piece would be, where it would stand.

    A piece of which no token is known yet gets what noise is on average.
    """

    def __init__(self, noise: Noise, mapping: VocabularyMap, ngrams: NgramCache | None) -> None:
        self._noise, self._to_target, self._ngrams = noise, mapping.to_target.astype(np.int64), ngrams
        self._begun = self._place = 0

    def start(self, draft: int, target: int) -> None:
        """A proposal begins: so many draft tokens are so many of the target's."""
        self._begun, self._place = draft, target

    def after(self, history: Sequence[int], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """float64[n]: the noise of these draft tokens behind a text of draft tokens."""
        place, node = self._where(history[self._begun :])
        tokens = self._to_target[ids]
        if node != ROOT and self._ngrams is not None:
            trie = self._ngrams.trie
            joined = [trie.ends[step] if (step := trie.step(node, piece)) else -1 for piece in ids.tolist()]
            merged = np.array(joined, np.int64)
            alone = self._at(place + 1, tokens)
            return np.where(merged >= 0, self._at(place, merged), alone)
        return self._at(place, tokens)

    def at(self, position: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """float64[n]: of these draft tokens at a place of the draft text, as if each piece before were a token."""
        return self._at(self._place + position - self._begun, self._to_target[ids])

    def roughly(self, position: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32[n]: of these draft tokens at a place of the draft text, as if each piece before were a token."""
        tokens = self._to_target[ids]
        found = self._noise.roughly(self._place + position - self._begun, np.maximum(tokens, 0))
        return np.where(tokens >= 0, found, np.float32(_MEAN))

    def _at(self, place: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.where(tokens >= 0, self._noise.at(place, np.maximum(tokens, 0)), _MEAN)

    def _where(self, pieces: Sequence[int]) -> tuple[int, int]:
        """The place of the target's token that is being spelled, and the node of the run that may go on."""
        place, node, trie = self._place, ROOT, None if self._ngrams is None else self._ngrams.trie
        for piece in pieces:
            if trie is None:
                place += 1
                continue
            after = trie.step(node, piece)
            if node != ROOT and not after:  # the run ended before: its pieces are a token
                place, after = place + 1, trie.step(ROOT, piece)
            if not after:
                place += 1
            node = after
        return place, node
