"""How a row of logits becomes the law that the next token is drawn from: penalties, temperature, truncation."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite, isnan, log
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.memory.errors import ArgumentError, Error
from paceline.runtime.contracts import common_prefix
from paceline.runtime.law import Law
from paceline.runtime.ops.vocabulary import kth_largest
from paceline.runtime.request import Sampling, validate
from paceline.runtime.rules.noise import GumbelNoise

Row = npt.NDArray[np.float32]


class LogitsError(Error, RuntimeError):
    """A model produced logits that no token can be chosen from."""


class LawMaker:
    """Turns rows of one model into choices and laws; what plain decoding uses and what every rule uses.

    prompt_length: where in a history the output begins. model: its name in error messages.
    """

    def __init__(self, sampling: Sampling, prompt_length: int, model: str = "the target model") -> None:
        validate(sampling)
        self.sampling = sampling
        self._model = model
        self._bias_ids = np.fromiter(sampling.logit_bias, np.int64, len(sampling.logit_bias))
        self._bias = np.fromiter(sampling.logit_bias.values(), np.float32, len(sampling.logit_bias))
        self._banned = np.fromiter(sorted(sampling.banned), np.int64, len(sampling.banned))
        self._repeats = sampling.repetition_penalty != 1.0
        self._counts = sampling.frequency_penalty != 0.0 or sampling.presence_penalty != 0.0
        ngram = int(sampling.no_repeat_ngram)
        self._tally = Tally(prompt_length, ngram) if self._repeats or self._counts or ngram else None
        self._prompt = prompt_length
        self._latest = max(sampling.not_before.values(), default=0)
        self.plain = not (
            self._tally or len(self._bias_ids) or len(self._banned) or self._latest or sampling.phrases
        )
        """Whether rows stay as they are."""
        self._every = np.empty(0, np.int64)

    def adjust(self, row: Row, history: Sequence[int]) -> Row:
        """float32[V] with bias, bans and penalties; the very same array where none applies, else a copy."""
        if self.plain:
            return row
        row = row.copy()
        known = self._bias_ids < len(row)  # a draft model may know fewer ids
        row[self._bias_ids[known]] += self._bias[known]
        row[self._banned[self._banned < len(row)]] = -inf
        if self.sampling.phrases or self._latest:
            self._look_back(row, history)
        if self._tally is not None:
            self._tally.follow(history)
            self._penalise(row, self._tally)
        return row

    def choice(self, row: Row, history: Sequence[int]) -> int:
        """The token of largest adjusted logit, the lowest id where several are. Raises LogitsError."""
        adjusted = row if self.plain else self.adjust(row, history)
        token = int(adjusted.argmax())
        if not isfinite(top := float(adjusted[token])):
            self._check(row, top)
        return token

    def coupled(self, row: Row, history: Sequence[int], noise: GumbelNoise) -> int:
        """The token that wins with this noise: over seeds its law is `law`. Raises LogitsError."""
        s = self.sampling
        if s.temperature == 0 or s.top_k or s.top_p < 1 or s.min_p > 0:
            return noise.choose(len(history), self.law(row, history))
        adjusted = self.adjust(row, history)
        self._check(row, float(adjusted.max()))
        return noise.choose_in_row(len(history), adjusted, s.temperature)

    def law(self, row: Row, history: Sequence[int]) -> Law:
        """What the next token is drawn from; at temperature 0 all of it is on `choice`. Raises LogitsError.

        Tokens below e^-50 of the likeliest are left out: together they are less than float64 resolves.
        """
        s = self.sampling
        if s.temperature == 0:
            return Law(np.array([self.choice(row, history)]), np.ones(1))
        adjusted = self.adjust(row, history)
        top = float(adjusted.max())
        self._check(row, top)
        floor = max(top - _NEGLIGIBLE * s.temperature, _LOWEST)
        if s.min_p > 0 and s.top_p == 1:
            floor = max(floor, top + s.temperature * log(s.min_p))
        if 0 < s.top_k < len(row):
            floor = max(floor, float(kth_largest(adjusted, s.top_k)))
        total = None
        if s.top_p < 1 and s.top_k == 0 and 1e-3 < s.temperature < 1e3 and len(row) > 4 * _HEAD:
            floor, total = self._head(adjusted, top, floor)
        ids, scaled = self._above(adjusted, np.float32(floor))
        scaled -= top
        scaled /= s.temperature
        weights = np.exp(scaled)  # not in place: numpy's vectorised exp needs a result of its own
        if s.top_p < 1:
            some = nucleus(weights, s.top_p * (float(weights.sum()) if total is None else total))
            if s.min_p > 0:
                some = some[weights[some] >= s.min_p]
            ids, weights = ids[some], weights[some]
        weights /= weights.sum()
        return Law(ids, weights)

    def _head(self, row: Row, top: float, floor: float) -> tuple[float, float | None]:
        """(a floor that keeps few tokens but the whole nucleus, the weight of all), or the floor given.

        Nearly always a thousand tokens hold the nucleus; of the rest only the sum is needed, in float32.
        """
        scaled = (row - np.float32(top)) / np.float32(self.sampling.temperature)
        weights = np.exp(scaled)
        total = float(weights.sum())
        edge = kth_largest(row, _HEAD)
        if float(weights[row >= edge].sum()) < self.sampling.top_p * total * (1 + 1e-4):
            return floor, None
        return max(floor, float(edge)), total

    def _above(self, row: Row, floor: np.float32) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Ids and float64 values of the entries at or above the floor."""
        kept = row >= floor
        if kept.all():
            if len(self._every) != len(row):
                self._every = np.arange(len(row), dtype=np.int64)
            return self._every, row.astype(np.float64)
        ids = np.flatnonzero(kept)
        return ids, row[ids].astype(np.float64)

    def _penalise(self, row: Row, tally: Tally) -> None:
        s = self.sampling
        if self._repeats:
            ids = tally.seen()
            ids = ids[ids < len(row)]
            values = row[ids].astype(np.float64)
            p = s.repetition_penalty
            with np.errstate(over="ignore"):
                row[ids] = np.where(values < 0, values * p, values / p)
        if self._counts:
            ids, counts = tally.output()
            less = (s.frequency_penalty * counts + s.presence_penalty).astype(np.float32)
            known = ids < len(row)
            row[ids[known]] -= less[known]
        if s.no_repeat_ngram and (repeated := [token for token in tally.repeats() if token < len(row)]):
            row[repeated] = -inf

    def _look_back(self, row: Row, history: Sequence[int]) -> None:
        """Bias the last tokens of phrases that stand in the history, ban tokens that may not come yet."""
        for phrase, bias in self.sampling.phrases.items():
            before = len(phrase) - 1
            if phrase[-1] < len(row) and tuple(history[len(history) - before :]) == phrase[:-1]:
                row[phrase[-1]] += np.float32(bias)
        if (made := len(history) - self._prompt) < self._latest:
            early = [t for t, least in self.sampling.not_before.items() if made < least and t < len(row)]
            row[early] = -inf

    def _check(self, row: Row, top: float) -> None:
        """`top` is the largest adjusted logit; numpy's max and argmax both stop at a NaN, so it shows one."""
        if isfinite(top):
            return
        if top == -inf and isfinite(row.max()):
            raise ArgumentError(
                "no token is left to choose: what is banned covers every token that the model allows"
            )
        kind = "NaN" if isnan(top) else "infinite" if top > 0 else "only -infinite"
        raise LogitsError(
            f"{self._model} produced {kind} logits: its weights or its numeric precision are broken; "
            "export it again with `paceline export --quant none`, or run it on the cpu "
            "(--device cpu, in Python: device='cpu')"
        )


class Tally:
    """Counts of one history at a time; a new history costs only what differs from the last one.

    ngram: the length of the runs that `repeats` looks for, 0 for none.
    """

    __slots__ = ("_all", "_grams", "_output", "_prompt", "_tokens")

    def __init__(self, prompt_length: int, ngram: int = 0) -> None:
        self._prompt = prompt_length
        self._grams = _Grams(ngram - 1) if ngram else None
        self._tokens: list[int] = []
        self._all = _Counts()
        self._output = _Counts()

    def follow(self, history: Sequence[int]) -> None:
        """Count this history instead of the last one."""
        new = list(history)
        keep = common_prefix(self._tokens, new)
        while len(self._tokens) > keep:
            token = self._tokens.pop()
            self._all.pop(token)
            if len(self._tokens) >= self._prompt:
                self._output.pop(token)
            if self._grams is not None:
                self._grams.pop(self._tokens)
        for token in new[keep:]:
            self._all.push(token)
            if len(self._tokens) >= self._prompt:
                self._output.push(token)
            if self._grams is not None:
                self._grams.push(self._tokens, token)
            self._tokens.append(token)

    def seen(self) -> npt.NDArray[np.int64]:
        """int64[n]: the distinct tokens of prompt and output; a view that the next history overwrites."""
        return self._all.ids[: self._all.used]

    def output(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """int64[n], float64[n]: the distinct tokens of the output and how often each stands there; views."""
        return self._output.ids[: self._output.used], self._output.times[: self._output.used]

    def repeats(self) -> Sequence[int]:
        """Tokens that would end a run of `ngram` tokens which prompt or output hold already."""
        return () if self._grams is None else self._grams.after(self._tokens)


class _Grams:
    """What followed each run of `size` tokens, in the order in which it came."""

    __slots__ = ("_after", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._after: dict[tuple[int, ...], list[int]] = {}

    def after(self, tokens: list[int]) -> Sequence[int]:
        return self._after.get(self._last(tokens), ())

    def push(self, tokens: list[int], token: int) -> None:
        if len(tokens) >= self._size:
            self._after.setdefault(self._last(tokens), []).append(token)

    def pop(self, tokens: list[int]) -> None:
        if len(tokens) >= self._size:
            self._after[self._last(tokens)].pop()

    def _last(self, tokens: list[int]) -> tuple[int, ...]:
        return tuple(tokens[max(len(tokens) - self._size, 0) :])


class _Counts:
    """Distinct tokens in the order in which they came; they leave in reverse, so the last place empties."""

    __slots__ = ("_place", "ids", "times", "used")

    def __init__(self) -> None:
        self.ids = np.empty(256, np.int64)
        self.times = np.empty(256)
        self.used = 0
        self._place: dict[int, int] = {}

    def push(self, token: int) -> None:
        place = self._place.get(token)
        if place is not None:
            self.times[place] += 1
            return
        if self.used == len(self.ids):
            self.ids = np.resize(self.ids, 2 * self.used)
            self.times = np.resize(self.times, 2 * self.used)
        self._place[token] = self.used
        self.ids[self.used] = token
        self.times[self.used] = 1
        self.used += 1

    def pop(self, token: int) -> None:
        place = self._place[token]
        self.times[place] -= 1
        if self.times[place] == 0:
            del self._place[token]
            self.used -= 1


def largest(row: npt.NDArray[Any], k: int) -> npt.NDArray[np.intp]:
    """Places of the k largest values, largest first; among equal values the earlier place first."""
    if k == 1:
        return np.array([row.argmax()])
    places = np.flatnonzero(row >= kth_largest(row, k))
    return places[np.argsort(-row[places], kind="stable")[:k]]


def nucleus(weights: npt.NDArray[np.float64], goal: float) -> npt.NDArray[np.intp]:
    """Ascending places of the fewest largest of these positive weights whose sum reaches the goal, or of all.

    The weight that reaches it belongs to them; among equal weights the earlier place goes first. The
    leading bits of a positive float sort like the float, so they tell which few weights need sorting.
    """
    above, kept, band = 0.0, np.zeros(len(weights), np.bool_), np.arange(len(weights))
    if len(weights) > _SORTED:
        bins = weights.view(np.int64) >> _COARSE
        bins -= bins.min()
        downwards = np.bincount(bins, weights)[::-1].cumsum()
        at = min(int(downwards.searchsorted(goal)), len(downwards) - 1)
        above = float(downwards[at - 1]) if at else 0.0
        kept = bins > len(downwards) - 1 - at
        band = np.flatnonzero(bins == len(downwards) - 1 - at)
    order = np.argsort(-weights[band], kind="stable")
    enough = int((above + weights[band[order]].cumsum()).searchsorted(goal)) + 1
    kept[band[order[:enough]]] = True
    return np.flatnonzero(kept)


_NEGLIGIBLE = 50.0
_LOWEST = float(np.finfo(np.float32).min)  # keeps -inf out, however hot
_HEAD = 1024
_SORTED = 1024
_COARSE = 46  # leaves the exponent and six bits of the fraction: 64 bins an octave
