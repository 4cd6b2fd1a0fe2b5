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
        below = self.probs.cumsum()
        at = int(below.searchsorted(rng.random() * below[-1], side="right"))
        return int(self.ids[min(at, len(self.ids) - 1)])

    def without(self, token: int) -> Law | None:
        """The law given that it is not this token; None where nothing else was possible."""
        keep = self.ids != token
        probs = self.probs[keep]
        total = float(probs.sum())
        return Law(self.ids[keep], probs / total) if total > 0 else None

    def excess(self, other: Law, scale: float = 1.0) -> tuple[float, Law | None]:
        """The mass of `max(scale * self - other, 0)` and the law in proportion to it, None without mass."""
        rest = scale * self.probs - other._at(self.ids)
        keep = rest > 0
        rest = rest[keep]
        mass = float(rest.sum())
        return mass, Law(self.ids[keep], rest / mass) if mass > _ROUNDING else None

    def _at(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """float64[n]: the probability of each of these ids, ascending."""
        if len(ids) > _WIDE:
            return self.dense(max(int(ids[-1]), int(self.ids[-1])) + 1)[ids]
        places = self.ids.searchsorted(ids)
        places[places == len(self.ids)] = 0
        return np.where(self.ids[places] == ids, self.probs[places], 0.0)


_ROUNDING = 1e-12  # below this a difference of laws is rounding, not mass
_WIDE = 4096  # from here on a dense row is quicker than searching
