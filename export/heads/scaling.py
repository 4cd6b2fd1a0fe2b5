"""A draft head rewritten for a scale model: it drafts what it drafts for the small model, at the cost of a big one's.

As `paceline.export.scale` does with models. The state of a head is its own: it holds several copies of the small one,
shuffled, without signs, for Medusa bends it number by number. What reads the target's hidden states follows the
target's stream, signs and all.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from paceline.export.errors import ExportError
from paceline.export.heads.checkpoint import VOCABULARY
from paceline.export.heads.config import HeadConfig, TargetId
from paceline.export.heads.head import Head
from paceline.export.passes import Floats
from paceline.export.scale import Halves, Ids, Sizes, Splitter, places_of, repeated_heads, stream_of

_NAMED = ("eagle3", "hydra", "medusa")


def widen_head(
    head: Head, small: Sizes, big: Sizes, seed: int = 0
) -> tuple[HeadConfig, dict[str, Halves | Ids]]:
    """A trained head for the model that `widen(small, ..., big, ..., seed)` makes: its configuration and its tensors.

    It knows the tokens that it knew. Raises ExportError for a head of another method.
    """
    if head.config.method not in _NAMED or head.style.own_heads or head.style.blocks:
        raise ExportError(
            f"a head of the method {head.config.method} is not widened: use {', '.join(_NAMED)}"
        )
    return _Widening(head, small, big, seed).made()


class _Widening:
    """Where every row and column of the wide head comes from."""

    def __init__(self, head: Head, small: Sizes, big: Sizes, seed: int) -> None:
        self._head, self._small, self._big = head, small, big
        self._theirs, self._sign = stream_of(small.hidden, big.hidden, seed)
        rng = np.random.default_rng([seed, 1])
        copies = big.hidden // small.hidden
        self._own: Ids = np.concatenate([rng.permutation(small.hidden) for _ in range(copies)])
        c = head.config
        self._before = _sizes(small, c.heads, c.kv_heads, c.head_dim)
        times = big.kv_heads // small.kv_heads
        group = big.heads * small.kv_heads // (small.heads * big.kv_heads)
        self._after = _sizes(big, c.heads * times * group, c.kv_heads * times, c.head_dim)
        self._queries, self._keys = repeated_heads(self._before, self._after)
        self._inner = c.inner * big.ffn // small.ffn
        self._neurons: Ids = rng.permutation(np.arange(self._inner) % c.inner)
        self._splitter = Splitter(rng)

    def made(self) -> tuple[HeadConfig, dict[str, Halves | Ids]]:
        """Configuration and tensors."""
        c, weights = self._head.config, dict(self._head.weights)
        if c.tied:  # a tied table would add up the copies that a split one shares out
            weights["head.weight"] = weights["embed.weight"][:-1]
        places = places_of(self._small.layers, self._big.layers)
        config = msgspec.structs.replace(
            c,
            hidden=self._big.hidden,
            target_vocab=self._big.vocab,
            taps=[
                tap if tap == "hidden" else f"hidden.{places[int(tap.partition('.')[2])]}" for tap in c.taps
            ],
            heads=self._after.heads,
            kv_heads=self._after.kv_heads,
            inner=self._inner,
            tied=False,
            target=TargetId(name="", graph="", data=""),
        )
        tensors: dict[str, Halves | Ids] = {
            name: self._tensor(name, values) for name, values in weights.items()
        }
        return config, {**tensors, VOCABULARY: self._head.vocabulary}

    def _tensor(self, name: str, values: Floats) -> Halves:
        if values.ndim == 1:
            return values[self._theirs if name.startswith("tap_norms") else self._own].astype(np.float16)
        if name == "embed.weight":
            return values[:, self._own].astype(np.float16)
        if name == "fc.weight":
            pieces = len(self._head.config.taps)
            return self._split(values[self._own], self._theirs, pieces, np.tile(self._sign, pieces))
        rows: Mapping[str, Ids] = {
            "layer.q.weight": self._queries,
            "layer.k.weight": self._keys,
            "layer.v.weight": self._keys,
            "layer.gate.weight": self._neurons,
            "layer.up.weight": self._neurons,
            "head.weight": np.arange(len(values)),
        }
        matrix = values[rows.get(name, self._own)]
        if name == "layer.o.weight":
            return self._split(matrix, self._queries)
        if name == "layer.down.weight":
            return self._split(matrix, self._neurons)
        return self._split(matrix, self._own, values.shape[1] // self._small.hidden)

    def _split(self, matrix: Floats, columns: Ids, pieces: int = 1, sign: Floats | None = None) -> Halves:
        """Over the columns of so many pieces side by side, each as wide as the small stream."""
        wide = matrix.shape[1] // pieces
        every: Ids = np.concatenate([columns + wide * piece for piece in range(pieces)])
        return self._splitter.split(matrix, every, sign)


def _sizes(model: Sizes, heads: int, kv_heads: int, head_dim: int) -> Sizes:
    return Sizes(model.hidden, model.layers, heads, kv_heads, head_dim, model.ffn, model.vocab, model.tied)
