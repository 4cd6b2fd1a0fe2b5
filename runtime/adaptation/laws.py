"""What the target thought of the tokens of an answer: the likeliest ones of every round, taken down as rounds go by."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt

from paceline.runtime.adaptation.contract import LIKELIEST
from paceline.runtime.contracts import Outcome
from paceline.runtime.ops.vocabulary import best_of
from paceline.runtime.request import Conversation

SHARE = 0.01
"""Of the time of the rounds, at most, that taking down takes: laws beyond it are left out."""
MOST_LAWS = 1024
"""Of a stretch that are kept: the latest."""
_NUMBER_BYTES = 40
"""Of a number in a list."""
_MESSAGE_BYTES = 20
"""Of the messages of a chat, for each token of its prompt."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A text and laws of the target in it, in its own tokens.

    places: int32[n], ascending; the law of a place is that of the token behind the text up to it. ids: int32[n, k] and
    probs: float32[n, k], the likeliest tokens. asked: of a chat, which the first `prompt` tokens are the text of.
    """

    tokens: list[int]
    places: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    probs: npt.NDArray[np.float32]
    asked: Conversation | None = None
    prompt: int = 0

    @property
    def bytes(self) -> int:
        """What it holds."""
        laws = self.places.nbytes + self.ids.nbytes + self.probs.nbytes
        messages = 0 if self.asked is None else _MESSAGE_BYTES * self.prompt
        return laws + messages + _NUMBER_BYTES * len(self.tokens)


class Laws:
    """Collects the laws of one stretch of an answer."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._found: deque[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float32], list[float]]] = deque()
        self._chat: tuple[Conversation | None, int] = None, 0
        self._rows = 0
        self._begun = self._spent = self._before = 0.0

    @property
    def spent(self) -> float:
        """Seconds that taking down took so far."""
        return self._spent

    def begin(self, asked: Conversation | None = None, prompt: int = 0) -> None:
        """Another stretch begins, that of a chat with a prompt of so many tokens."""
        self._clear()
        self._chat = asked, prompt
        self._begun = self._clock()

    def see(self, outcome: Outcome, length: int) -> None:
        """A round that was verified, after which the text has `length` tokens: what was accepted, and what was not."""
        begun, logits = self._clock(), outcome.scored.logits
        if self._spent > SHARE * (self._before + begun - self._begun) or not len(logits):
            return
        path = outcome.verdict.path
        chain = path[-1] == len(path) - 1
        rows = logits[: len(path)] if chain else logits[list(path)]
        ids, values, sums = best_of(rows, min(LIKELIEST, rows.shape[1]), 1.0)
        self._found.append((length - len(path) - 1, ids, values, sums))
        self._rows += len(ids)
        while self._rows > MOST_LAWS:
            self._rows -= len(self._found.popleft()[1])
        self._spent += self._clock() - begun

    def episode(self, tokens: Sequence[int]) -> Episode | None:
        """All of the stretch, which ends, in a text of these tokens; None where there is nothing."""
        self._before += self._clock() - self._begun
        if not self._found:
            return None
        places = np.concatenate([np.arange(at, at + len(ids)) for at, ids, _, _ in self._found])
        ids = np.concatenate([found[1] for found in self._found])
        values = np.concatenate([found[2] for found in self._found])
        sums = np.concatenate([found[3] for found in self._found])
        probs = np.exp(values - values[:, :1]) / sums[:, None]
        self._clear()
        fits = (places >= 0) & (places < len(tokens) - 1) & np.isfinite(probs).all(axis=1)
        places, ids, probs = places[fits], ids[fits], probs[fits]
        if not len(places):
            return None
        laws = places.astype(np.int32), ids.astype(np.int32), probs.astype(np.float32)
        return Episode(list(tokens), *laws, *self._chat)

    def _clear(self) -> None:
        self._found.clear()
        self._rows = 0
