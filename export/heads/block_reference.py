"""A DFlash head in numpy, as `reference.py` is one of the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.export.heads.dflash import MASK
from paceline.export.heads.reference import Past, Reference, silu, softmax
from paceline.export.heads.tensors import Ids
from paceline.export.passes import Floats


class BlockReference(Reference):
    """Keys and values of `Past` have the layers first, [layers, T, kv_heads, head_dim]."""

    def read(self, tokens: Sequence[int], features: Floats) -> tuple[Floats, Past]:
        """See `Reference.read`: the state is the token."""
        context = self._norm(self._fused(features), "context_norm")
        places = np.arange(len(tokens))
        rows = [self._row(context, f"layers.{number}", places) for number in range(self._c.layers)]
        return self._embedded(np.array(tokens)), Past(*(np.stack(side) for side in zip(*rows, strict=True)))

    def draft(
        self, states: Floats, past: Past, lengths: Sequence[int], followed: Ids, roots: Ids | None = None
    ) -> Floats:
        """See `Reference.draft`: no level sees what another one chose."""
        levels = followed.shape[1]
        return np.stack(
            [self._block(state, past, n, levels) for state, n in zip(states, lengths, strict=True)]
        )

    def _block(self, state: Floats, past: Past, length: int, levels: int) -> Floats:
        """Logits [D, Vd] of one draft."""
        x = np.stack([state, *[self._weights[MASK]] * levels])
        places = length + np.arange(levels + 1)
        for number in range(self._c.layers):
            name = f"layers.{number}"
            normed = self._norm(x, f"{name}.input_norm")
            query = self._rotated(self._norm(self._split(normed, f"{name}.q"), f"{name}.q_norm"), places)
            new = self._row(normed, name, places)
            keys, values = (
                np.concatenate([held[number, :length], own]) for held, own in zip(past, new, strict=True)
            )
            query = query.reshape(len(x), self._c.kv_heads, -1, self._c.head_dim)
            scores = np.einsum("tkgd,skd->tkgs", query, keys) * np.float32(self._c.head_dim**-0.5)
            seen = np.einsum("tkgs,skd->tkgd", softmax(scores), values)
            x = x + self._times(seen.reshape(len(x), -1), f"{name}.o")
            normed = self._norm(x, f"{name}.mlp_norm")
            gate = silu(self._times(normed, f"{name}.gate"))
            x = x + self._times(gate * self._times(normed, f"{name}.up"), f"{name}.down")
        return self._logits(self._norm(x[1:], "final_norm"), 0)

    def _row(self, x: Floats, name: str, places: Ids) -> Past:
        """Keys and values [T, kv_heads, head_dim] of rows at these places."""
        keys = self._norm(self._split(x, f"{name}.k"), f"{name}.k_norm")
        return Past(self._rotated(keys, places), self._split(x, f"{name}.v"))

    def _times(self, x: Floats, name: str) -> Floats:
        product: Floats = x @ self._weights[f"{name}.weight"].T
        return product

    def _split(self, x: Floats, name: str) -> Floats:
        return self._times(x, name).reshape(len(x), -1, self._c.head_dim)
