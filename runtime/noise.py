"""Shared noise: Gumbel variables that are a pure function of (seed, request, position, token).

Whoever adds the same noise to nearly the same law nearly always finds the same maximum, so a drafter can follow
the target's choices without being told them (Daliri, Musco, Suresh, arXiv 2408.07978).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paceline.runtime.law import Law

Bits = npt.NDArray[np.uint64]


class GumbelNoise:
    """The noise of one request. `position` is the index in the sequence of the token being chosen."""

    __slots__ = ("_key",)

    def __init__(self, seed: int, number: int) -> None:
        self._key = _absorb(_absorb(_START, seed), number)

    def at(self, position: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """float64[n]: standard Gumbel noise of these tokens at this position."""
        return -np.log(self._exponential(self._bits(position, ids)))

    def choose(self, position: int, law: Law) -> int:
        """The token of largest `log p + g`, distributed as `law` over seeds.

        With `E = exp(-g)` exponential this is the smallest `E / p`. In a wide law the few likely tokens bound the
        winner first, and the logarithm is taken only where the hash says that the bound can be beaten.
        """
        ids, probs = law.ids, law.probs
        bits = self._bits(position, ids)
        if len(ids) > _WIDE:
            likely = probs >= min(_LIKELY, float(probs.max()) / 8)
            bound = float((self._exponential(bits[likely]) / probs[likely]).min())
            # An unlikely token wins only with E < bound * _LIKELY; two steps of the grid cover the rounding.
            floor = np.uint64(max(int(np.exp(-bound * _LIKELY) * 2.0**_DIGITS) - 2, 0))
            some = np.flatnonzero(likely | (bits >= floor))
            ids, probs, bits = ids[some], probs[some], bits[some]
        return int(ids[(self._exponential(bits) / probs).argmin()])

    def _bits(self, position: int, ids: npt.NDArray[np.int64]) -> Bits:
        return _hash(_absorb(self._key, position), ids)

    @staticmethod
    def _exponential(bits: Bits) -> npt.NDArray[np.float64]:
        """-log of a uniform in the open unit interval: the half step keeps it off both ends."""
        return -np.log((bits.astype(np.float64) + 0.5) * 2.0**-_DIGITS)


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
_BLOCK = 1 << 14
_WIDE = 4096
_LIKELY = 1e-4
