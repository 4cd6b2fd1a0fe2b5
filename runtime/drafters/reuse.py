"""Whether a draft that is there already is worth more than one that is made anew."""

from __future__ import annotations

_LEARNING = 0.1
_OUTLIER = 3.0
"""How many times as long as usual a draft may seem to take: now and then one reads a whole text."""


class Reuse:
    """Weighs both by the accepted tokens that they promise, and the tokens that the text grows by in the seconds that
    drafting anew takes. Where nothing was measured what is there is used."""

    def __init__(self) -> None:
        self._seconds = self._round = self._tokens = 0.0

    def drafted(self, seconds: float) -> None:
        """A draft was made anew."""
        usual = self._seconds or seconds
        self._seconds = usual + _LEARNING * (min(seconds, _OUTLIER * usual) - usual)

    def grew(self, tokens: int, seconds: float) -> None:
        """The text grew by so many tokens from one proposal to the next."""
        before = self._round or seconds
        self._round = before + _LEARNING * (min(seconds, _OUTLIER * before) - before)
        self._tokens += (_LEARNING if self._tokens else 1.0) * (tokens - self._tokens)

    def pays(self, there: float, anew: float) -> bool:
        """Whether to use what is there; both in accepted tokens."""
        if not self._round:
            return True
        return there >= anew - self._seconds * self._tokens / self._round
