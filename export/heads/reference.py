"""A head in numpy, in float32: what its graphs are compared with. It shares nothing with them but the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from paceline.export.heads.head import Head
from paceline.export.heads.tensors import Ids
from paceline.export.passes import Floats
from paceline.export.plain.forward import rms_norm, rotated
from paceline.export.positions import plain_frequencies


class Past(NamedTuple):
    """What attention has of rows: rotated keys and values [T, kv_heads, head_dim]."""

    keys: Floats
    values: Floats


class Reference:
    """weights: by the names of the checkpoint, in place of the head's own."""

    def __init__(self, head: Head, weights: Mapping[str, Floats] | None = None) -> None:
        self._c, self._style = head.config, head.style
        self._weights = head.weights if weights is None else weights
        self._rows = np.arange(self._c.target_vocab)
        if not self._style.whole_table:
            self._rows[:] = self._c.vocab
            self._rows[head.vocabulary] = np.arange(self._c.vocab)

    def read(self, tokens: Sequence[int], features: Floats) -> tuple[Floats, Past]:
        """States [T, H] of all pairs of a text from its first one on, features [T, F] before each token; of Kangaroo
        logits [T, Vd].
        """
        fused, count = self._fused(features), len(tokens)
        if self._c.method == "medusa" or not self._c.layers:
            none = np.zeros((count, self._c.kv_heads, self._c.head_dim), np.float32)
            return fused, Past(none, none)
        fused, query, past = self._entered(np.array(tokens), fused, np.arange(count))
        scores = np.einsum("tkgd,skd->tkgs", query, past.keys)
        seen = np.arange(count) <= np.arange(count)[:, None, None, None]
        attended = np.einsum("tkgs,skd->tkgd", softmax(np.where(seen, scores, -np.inf)), past.values)
        state = self._finished(fused, attended)
        return self._logits(state, 0) if self._c.method == "kangaroo" else state, past

    def draft(
        self, states: Floats, past: Past, lengths: Sequence[int], followed: Ids, roots: Ids | None = None
    ) -> Floats:
        """Logits [B, D, Vd] of drafts from states [B, H], each after so many pairs of a text.

        followed: what the levels choose, ids of the target [B, D]. roots: the last token of each text [B], which
        published Hydra heads look at.
        """
        found, given, own = [], states, list[Past]()
        places, before = np.array(lengths), np.arange(len(past.keys)) < np.array(lengths)[:, None, None, None]
        for level in range(followed.shape[1]):
            chosen = followed[:, :level]
            if self._c.method == "medusa":
                bent = states @ self._weights[f"levels.{level}.weight"].T
                if self._style.own_heads:
                    bent = bent + self._weights[f"levels.{level}.bias"]
                given = states + silu(bent)
            elif self._style.blocks:
                assert roots is not None
                given = self._blocks(level, [states, *(self._embedded(t) for t in (roots, *chosen.T))])
            elif self._c.method == "hydra":
                path = np.concatenate([states, *(self._embedded(tokens) for tokens in chosen.T)], axis=1)
                bent = silu(path @ self._weights[f"levels.{level}.weight"].T)
                given = states + bent @ self._weights[f"levels.{level}.out.weight"].T
            elif level:
                given, query, new = self._entered(chosen[:, -1], given, places + level - 1)
                own.append(new)
                given = self._finished(given, self._over(query, past, before, own))
            found.append(self._logits(given, level))
        return np.stack(found, axis=1)

    def _over(self, query: Floats, past: Past, before: npt.NDArray[np.bool_], own: Sequence[Past]) -> Floats:
        """What queries [B, kv_heads, groups, head_dim] see: of the text what stands before, and all of `own`."""
        keys, values = (np.stack(side, axis=1) for side in zip(*own, strict=True))
        scores = np.where(before, np.einsum("bkgd,skd->bkgs", query, past.keys), -np.inf)
        alone = np.einsum("bkgd,bjkd->bkgj", query, keys)
        share = softmax(np.concatenate([scores, alone], axis=-1))
        cached, drafted = np.split(share, [len(past.keys)], axis=-1)
        seen: Floats = np.einsum("bkgj,bjkd->bkgd", drafted, values)
        seen += np.einsum("bkgs,skd->bkgd", cached, past.values)
        return seen

    def _logits(self, states: Floats, level: int) -> Floats:
        if self._style.last_norm == "logits":
            states = self._norm(states, "final_norm")
        name = f"levels.{level}.head.weight" if self._style.own_heads else "head.weight"
        table = self._weights["embed.weight"][:-1] if self._c.tied else self._weights[name]
        logits: Floats = states @ table.T
        return logits + self._weights[f"levels.{level}.head.bias"] if self._style.blocks else logits

    def _blocks(self, level: int, path: Sequence[Floats]) -> Floats:
        """A level of a published Hydra head."""

        def turned(x: Floats, name: str) -> Floats:
            out: Floats = x @ self._weights[f"levels.{level}.{name}.weight"].T
            return out + self._weights[f"levels.{level}.{name}.bias"]

        x = np.concatenate(path, axis=1)
        x = turned(x, "residual") + silu(turned(x, "linear"))
        for block in range(1, self._style.blocks):
            x = x + silu(turned(x, f"blocks.{block}"))
        return x

    def _fused(self, features: Floats) -> Floats:
        if not self._style.fused:
            return features
        if self._style.normed_taps:
            pieces = np.split(features, len(self._c.taps), axis=1)
            features = np.concatenate(
                [self._norm(piece, f"tap_norms.{i}") for i, piece in enumerate(pieces)], axis=1
            )
        fused: Floats = features @ self._weights["fc.weight"].T
        return fused

    def _embedded(self, tokens: Ids) -> Floats:
        rows: Floats = self._weights["embed.weight"][self._rows[tokens]]
        return rows

    def _norm(self, x: Floats, name: str) -> Floats:
        return rms_norm(x, self._weights[f"{name}.weight"], self._c.epsilon)

    def _entered(self, tokens: Ids, given: Floats, places: Ids) -> tuple[Floats, Floats, Past]:
        """Of pairs at these places what the layer adds to [N, H], queries, keys and values.

        Queries [N, kv_heads, groups, head_dim].
        """
        c, count = self._c, len(tokens)
        x: Floats
        if self._style.entry == "joined":
            both = np.concatenate([self._embedded(tokens), given], axis=1)
            x = both @ self._weights["fc.weight"].T + self._weights["fc.bias"]
            given = x
        else:
            x = self._norm(given, "state_norm")
            if self._style.entry == "pair":
                x = np.concatenate([self._norm(self._embedded(tokens), "token_norm"), x], axis=1)
        query, key, value = (
            (x @ self._weights[f"layer.{part}.weight"].T).reshape(count, -1, c.head_dim) for part in "qkv"
        )
        scaled = self._rotated(query, places) * np.float32(c.head_dim**-0.5)
        return (
            given,
            scaled.reshape(count, c.kv_heads, -1, c.head_dim),
            Past(self._rotated(key, places), value),
        )

    def _rotated(self, x: Floats, places: Ids) -> Floats:
        """Rows [T, heads, head_dim] turned by their places."""
        frequencies = plain_frequencies({"rope_theta": self._c.rope_theta}, self._c.head_dim // 2)
        angles = places.astype(np.float32)[:, None, None] * frequencies
        return rotated(x, np.cos(angles), np.sin(angles))

    def _finished(self, given: Floats, attended: Floats) -> Floats:
        """The states of pairs that came with `given`, after what they saw."""
        h = given + attended.reshape(len(given), -1) @ self._weights["layer.o.weight"].T
        if self._style.feed_forward:
            normed = self._norm(h, "mlp_norm")
            gate = silu(normed @ self._weights["layer.gate.weight"].T)
            h = (
                h
                + (gate * (normed @ self._weights["layer.up.weight"].T))
                @ self._weights["layer.down.weight"].T
            )
        return self._norm(h, "final_norm") if self._style.last_norm == "state" else h


def softmax(scores: Floats) -> Floats:
    """Over the last axis."""
    share = np.exp(scores - scores.max(axis=-1, keepdims=True))
    whole: Floats = share / share.sum(axis=-1, keepdims=True)
    return whole


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):
        share: Floats = np.reciprocal(1 + np.exp(-x))
    return share


def silu(x: Floats) -> Floats:
    """x times its sigmoid."""
    return x * sigmoid(x)
