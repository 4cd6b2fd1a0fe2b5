"""What trials may cost: seconds that are earned while time passes, and spent on arms that may lose."""

from __future__ import annotations

FIRST_TOKENS = 64
"""Of the first answer: what is learnt in them pays longest, so their trials are paid otherwise."""
_FIRST = 16.0
"""Plain tokens whose time trials may cost in these."""
_SHARE, _WON = 0.003, 0.02
"""After them: the share of the time that passes, and of the time won against plain decoding."""
SAVED = 12.0
"""The most that is saved up, in plain tokens, unless a trial that needs more is saved up for."""


class Purse:
    """seconds: what may be lost now. saving: the seconds of a trial that is saved up for, 0 for none."""

    def __init__(self) -> None:
        self.seconds, self.saving = -1.0, 0.0
        self._first = False

    def begin(self, first: bool, plain: float, owed: float) -> None:
        """An answer begins; before the first one nothing is known of any arm.

        plain: seconds of a plain token. owed: what reading the prompt costs the arms.
        """
        self._first = first
        if first:
            self.seconds = max(self.seconds, _FIRST * plain + owed)

    def earn(self, made: int, seconds: float, won: float, plain: float) -> None:
        """Time passed. made: tokens of the answer so far; won: seconds less than plain decoding would have taken."""
        if made < FIRST_TOKENS:
            return
        if self._first:
            self._first, self.seconds = False, min(self.seconds, 0.0)
        earned = _SHARE * seconds + _WON * max(won, 0.0)
        self.seconds = min(self.seconds + earned, max(SAVED * plain, self.saving))
