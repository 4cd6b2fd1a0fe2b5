"""Shared noise: Gumbel variables that are a pure function of (seed, request, position, token).

Whoever adds the same noise to nearly the same law nearly always finds the same maximum, so a drafter can
follow the target's choices without being told them (Daliri, Musco, Suresh, arXiv 2408.07978).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paceline.runtime.law import Law
from paceline.runtime.ops.vocabulary import kth_largest, native

Bits = npt.NDArray[np.uint64]


class GumbelNoise:
    """The noise of one request. `position` is the index in the sequence of the token being chosen."""

    __slots__ = ("_key",)

    def __init__(self, seed: int, number: int) -> None:
        self._key = _absorb(_absorb(_START, seed), number)

    def at(self, position: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """float64[n]: standard Gumbel noise of these tokens at this position."""
        bits = _hash(_absorb(self._key, position), ids)
        # The half step keeps the uniform off both ends of the unit interval.
        return -np.log(-np.log((bits.astype(np.float64) + 0.5) * 2.0**-_DIGITS))

    def after(self, history: Sequence[int], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """float64[n]: `at` for the token that follows a text."""
        return self.at(len(history), ids)

    def roughly(self, position: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32[n]: `at` to about three digits and a few times as fast, for those who only guess."""
        bits = (_hash(_absorb(self._key, position), ids) >> np.uint64(_DIGITS - _ROUGH)).astype(np.int32)
        below = bits.astype(np.float32)
        below += np.float32(0.5)
        below *= np.float32(2.0**-_ROUGH)
        np.negative(np.log(below, out=below), out=below)
        noise: npt.NDArray[np.float32] = np.negative(np.log(below, out=below), out=below)
        return noise

    def choose(self, position: int, law: Law) -> int:
        """The token of largest `log p + g`, distributed as `law` over seeds."""
        return int(law.ids[(np.log(law.probs) + self.at(position, law.ids)).argmax()])

    def choose_in_row(self, position: int, row: npt.NDArray[np.float32], temperature: float) -> int:
        """`choose` for all of a row (finite or -inf logits) at a temperature, without making the law.

        The few likeliest tokens set a mark; below them a token can pass it only with large noise, and whether
        it has that is read off the hash, before any logarithm.
        """
        if len(row) <= _BLOCK:
            return int(self._perturbed(position, row, np.arange(len(row)), temperature).argmax())
        edge = float(kth_largest(row, _HEAD))
        head = np.flatnonzero(row >= edge)
        mark = float(self._perturbed(position, row, head, temperature).max())
        # A standard exponential E = exp(-g) has to be below exp(edge / temperature - mark).
        floor = int(max(np.exp(-np.exp(edge / temperature - mark)) * 2.0**_DIGITS - 2, 0))
        above = _noise_above(_absorb(self._key, position), len(row), floor)
        ids = np.unique(np.concatenate((head, above)))
        return int(ids[self._perturbed(position, row, ids, temperature).argmax()])

    def _perturbed(
        self, position: int, row: npt.NDArray[np.float32], ids: npt.NDArray[np.int64], temperature: float
    ) -> npt.NDArray[np.float64]:
        return row[ids].astype(np.float64) / temperature + self.at(position, ids)


def _noise_above(key: int, size: int, floor: int) -> npt.NDArray[np.int64]:
    """Ascending ids below `size` whose hash is at least `floor`; the native library gives the same."""
    if (library := native()) is not None:
        return library.noise_above(key, size, floor)
    found = []
    for start in range(0, size, _BLOCK):
        ids = np.arange(start, min(start + _BLOCK, size))
        found.append(ids[_hash(key, ids) >= np.uint64(floor)])
    return np.concatenate(found)


def _hash(key: int, ids: npt.NDArray[np.int64]) -> Bits:
    """uint64[n], 52 random bits a token; block by block, so that the passes stay in the processor's cache."""
    out = np.empty(len(ids), np.uint64)
    counters = np.ascontiguousarray(ids).view(np.uint64)
    spare = np.empty(min(len(ids), _BLOCK), np.uint64)
    for start in range(0, len(ids), _BLOCK):
        x = out[start : start + _BLOCK]
        shifted = spare[: len(x)]
        np.multiply(counters[start : start + _BLOCK], np.uint64(_STEP), out=x)
        x += np.uint64(key)
        for shift, factor in zip(_SHIFTS, _FACTORS, strict=True):
            np.right_shift(x, np.uint64(shift), out=shifted)
            x ^= shifted
            x *= np.uint64(factor)
        x >>= np.uint64(64 - _DIGITS)
    return out


def _absorb(key: int, word: int) -> int:
    """Mix one more word of any size into a 64-bit key."""
    word &= _ALL * (_ALL + 2)  # 128 bits: negative seeds have one meaning, large ones keep theirs
    for part in (word & _ALL, word >> 64):
        key = ((key ^ part) * _STEP + _START) & _ALL
        for shift, factor in zip(_SHIFTS, _FACTORS, strict=True):
            key = ((key ^ (key >> shift)) * factor) & _ALL
        key ^= key >> 32
    return key


_ALL = 2**64 - 1
# Odd constants without structure: fractional digits of the square roots of 2, 3, 5, 7 and 11.
_START = 0x6A09E667F3BCC909
_STEP = 0xBB67AE8584CAA73B
_FACTORS = (0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1, 0x510E527FADE682D1)
_SHIFTS = (32, 29, 31)
_DIGITS = 52  # a uniform and its half step are then exact in float64
_ROUGH = 23  # a uniform and its half step are then exact in float32
_BLOCK = 1 << 14
_HEAD = 256
