"""A probability law over token ids, kept sparse: what is left of a row of logits after truncation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Law:
    """ids: int64[n], ascending and distinct; probs: float64[n], positive, summing to 1."""

    ids: npt.NDArray[np.int64]
    probs: npt.NDArray[np.float64]

    def of(self, token: int) -> float:
        """Probability of one token, 0 where it is not listed."""
        at = int(np.searchsorted(self.ids, token))
        return float(self.probs[at]) if at < len(self.ids) and self.ids[at] == token else 0.0

    def dense(self, vocab: int) -> npt.NDArray[np.float64]:
        """float64[vocab]."""
        row = np.zeros(vocab)
        row[self.ids] = self.probs
        return row

    def sample(self, rng: np.random.Generator) -> int:
        """One token, by inversion of a single uniform."""
        at = int(np.searchsorted(np.cumsum(self.probs), rng.random() * self.probs.sum(), side="right"))
        return int(self.ids[min(at, len(self.ids) - 1)])
