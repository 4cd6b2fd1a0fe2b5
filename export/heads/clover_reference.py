"""A Clover head in numpy, as `reference.py` is one of the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.export.heads.reference import Past, Reference, silu
from paceline.export.heads.tensors import Ids
from paceline.export.passes import Floats


class CloverReference(Reference):
    """Reads as they do."""

    def draft(
        self, states: Floats, past: Past, lengths: Sequence[int], followed: Ids, roots: Ids | None = None
    ) -> Floats:
        """See `Reference.draft`: what stands before is in the states."""
        found = []
        for level in range(followed.shape[1]):
            if level:
                states = self._taken(states, self._embedded(followed[:, level - 1]))
            bent = silu(states @ self._weights[f"levels.{level}.weight"].T)
            found.append(self._logits(states + bent, level))
        return np.stack(found, axis=1)

    def _taken(self, states: Floats, tokens: Floats) -> Floats:
        """States [B, H] after embedded tokens."""
        given = {"q": self._norm(states, "decoder.norm"), "k": tokens, "v": tokens}
        query, key, value = (
            (x @ self._weights[f"decoder.{name}.weight"].T).reshape(len(x), self._c.heads, -1)
            for name, x in given.items()
        )
        normed = self._norm(query, "decoder.q_norm") * self._norm(key, "decoder.k_norm")
        seen = (normed.mean(axis=-1, keepdims=True) * value).reshape(len(states), -1)
        taken: Floats = states + seen @ self._weights["decoder.o.weight"].T
        return taken
