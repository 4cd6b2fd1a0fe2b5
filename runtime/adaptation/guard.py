"""Whether what was learnt is better than nothing: new samples say so, before they are learnt."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import sqrt

import numpy as np
import numpy.typing as npt

Adapters = Mapping[str, npt.NDArray[np.float32]]
LAST = 16
"""New samples that are asked."""
_DOUBT = 2.0
"""Standard errors by which the mean of their gains must be below zero: it takes five samples at least."""
_WORST = 1e6
"""What a loss that is no number counts as."""


class Guard:
    """Keeps the adapters that were last found better than none, to go back to where learning does harm."""

    def __init__(self) -> None:
        self._gains: deque[float] = deque(maxlen=LAST)
        self.better: Adapters | None = None
        """None: nothing that was learnt since it last went back was found better than none."""
        self.returns = 0
        """How often it went back."""

    def see(self, loss: float, without: float, adapters: Adapters) -> bool:
        """A new sample with the loss that it has, and would have if nothing had been learnt; whether to go back.

        adapters: those of the first loss. Who goes back goes to `better`, and calls `went_back`.
        """
        gain = without - loss if np.isfinite(loss) else -_WORST
        self._gains.append(gain)
        total = sum(self._gains)
        if gain > 0 and total > 0:
            self.better = adapters
        return total < -_DOUBT * sqrt(sum(each * each for each in self._gains))

    def went_back(self) -> None:
        """To `better`; if that does harm as well there is nothing left but none."""
        self._gains.clear()
        self.better = None
        self.returns += 1
