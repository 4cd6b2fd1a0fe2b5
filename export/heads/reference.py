"""A head in numpy, in float32: what its graphs are compared with. It shares nothing with them but the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paceline.export.heads.head import Head
from paceline.export.passes import Floats
from paceline.export.plain.forward import rms_norm, rotated
from paceline.export.positions import plain_frequencies


@dataclass(frozen=True, slots=True)
class Past:
    """What attention has of the rows so far: rotated keys and values [T, kv_heads, head_dim]."""

    keys: Floats
    values: Floats

    def upto(self, rows: int) -> Past:
        """Of the first rows alone."""
        return Past(self.keys[:rows], self.values[:rows])

    def with_more(self, other: Past) -> Past:
        """Rows behind one another."""
        return Past(np.concatenate([self.keys, other.keys]), np.concatenate([self.values, other.values]))


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
        """States [T, H] of all pairs of a text from its first one on, features [T, F] before each token."""
        fused = self._fused(features)
        if self._c.method == "medusa":
            none = np.zeros((len(tokens), self._c.kv_heads, self._c.head_dim), np.float32)
            return fused, Past(none, none)
        nothing = np.zeros((0, self._c.kv_heads, self._c.head_dim), np.float32)
        return self._step(list(tokens), fused, Past(nothing, nothing))

    def draft(self, state: Floats, past: Past, followed: Sequence[int]) -> Floats:
        """Logits [D, Vd] of a draft from a state [H] whose levels choose these ids of the target."""
        found, given = [], state[None]
        for level in range(len(followed)):
            before = list(followed[:level])
            if self._c.method == "medusa":
                bent = state[None] @ self._weights[f"levels.{level}.weight"].T
                if self._style.own_heads:
                    bent = bent + self._weights[f"levels.{level}.bias"]
                given = state[None] + _silu(bent)
            elif self._c.method == "hydra":
                path = np.concatenate([state[None], *(self._embedded([token]) for token in before)], axis=1)
                bent = _silu(path @ self._weights[f"levels.{level}.weight"].T)
                given = state[None] + bent @ self._weights[f"levels.{level}.out.weight"].T
            elif level:
                given, past = self._step(before[-1:], given, past)
            found.append(self._logits(given, level)[0])
        return np.stack(found)

    def _logits(self, states: Floats, level: int) -> Floats:
        if not self._style.normed_states:
            states = self._norm(states, "final_norm")
        name = f"levels.{level}.head.weight" if self._style.own_heads else "head.weight"
        table = self._weights["embed.weight"][:-1] if self._c.tied else self._weights[name]
        logits: Floats = states @ table.T
        return logits

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

    def _embedded(self, tokens: Sequence[int]) -> Floats:
        rows: Floats = self._weights["embed.weight"][self._rows[list(tokens)]]
        return rows

    def _norm(self, x: Floats, name: str) -> Floats:
        return rms_norm(x, self._weights[f"{name}.weight"], self._c.epsilon)

    def _step(self, tokens: Sequence[int], given: Floats, past: Past) -> tuple[Floats, Past]:
        """States of pairs behind those of `past`, and all of them."""
        c, before, count = self._c, len(past.keys), len(tokens)
        x = np.concatenate(
            [self._norm(self._embedded(tokens), "token_norm"), self._norm(given, "state_norm")], 1
        )
        query, key, value = (
            (x @ self._weights[f"layer.{part}.weight"].T).reshape(count, -1, c.head_dim) for part in "qkv"
        )
        places = np.arange(before, before + count, dtype=np.float32)[:, None, None]
        angles = places * plain_frequencies({"rope_theta": c.rope_theta}, c.head_dim // 2)
        turn = np.cos(angles), np.sin(angles)
        whole = past.with_more(Past(rotated(key, *turn), value))
        groups = rotated(query, *turn).reshape(count, c.kv_heads, -1, c.head_dim)
        scores = np.einsum("tkgd,skd->kgts", groups, whole.keys) * np.float32(c.head_dim**-0.5)
        seen = np.arange(before + count) <= np.arange(before, before + count)[:, None]
        scores = np.where(seen, scores, np.float32(-np.inf))
        share = np.exp(scores - scores.max(axis=-1, keepdims=True))
        share /= share.sum(axis=-1, keepdims=True)
        attended = np.einsum("kgts,skd->tkgd", share, whole.values).reshape(count, -1)
        h = given + attended @ self._weights["layer.o.weight"].T
        normed = self._norm(h, "mlp_norm")
        inner = _silu(normed @ self._weights["layer.gate.weight"].T) * (
            normed @ self._weights["layer.up.weight"].T
        )
        h = h + inner @ self._weights["layer.down.weight"].T
        return (self._norm(h, "final_norm") if self._style.normed_states else h), whole


def _silu(x: Floats) -> Floats:
    with np.errstate(over="ignore"):
        bent: Floats = x / (1 + np.exp(-x))
    return bent
