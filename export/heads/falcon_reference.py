"""A Falcon head in numpy, as `reference.py` is one of the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.export.heads.config import TOGETHER
from paceline.export.heads.dflash import MASK
from paceline.export.heads.reference import Past, Reference, sigmoid
from paceline.export.heads.tensors import Ids
from paceline.export.passes import Floats

_NONE = -1
"""Stands for a token that is not known: the mask."""


class FalconReference(Reference):
    """Reads as they do."""

    def draft(
        self, states: Floats, past: Past, lengths: Sequence[int], followed: Ids, roots: Ids | None = None
    ) -> Floats:
        """See `Reference.draft`."""
        levels, own = [states], list[Past]()
        held: Floats = np.zeros_like(states)
        masks = [np.full(len(states), _NONE)] * (TOGETHER - 1)
        levels += self._step(masks, [states] * (TOGETHER - 1), past, lengths, [], held)[0]
        while len(levels) < followed.shape[1]:
            begin = len(levels) - TOGETHER
            tokens = list(followed.T[begin : len(levels)])
            new, held = self._step(tokens, levels[begin:], past, lengths, own, held)
            levels += new
        return np.stack([self._logits(state, 0) for state in levels[: followed.shape[1]]], axis=1)

    def _step(
        self,
        tokens: Sequence[Ids],
        states: Sequence[Floats],
        past: Past,
        lengths: Sequence[int],
        own: list[Past],
        held: Floats,
    ) -> tuple[list[Floats], Floats]:
        """New states, and what the cell holds behind these pairs; their rows are added to `own`."""
        shown, queries, given = list[Floats](), list[Floats](), list[Floats]()
        for ids, state in zip(tokens, states, strict=True):
            pair = [self._norm(self._embedded(ids), "token_norm"), self._norm(state, "state_norm")]
            gates = np.concatenate(pair, axis=1) @ self._weights["cell.weight"].T
            new, keep, show = np.split(gates, 3, axis=1)
            keep = sigmoid(keep)
            held = keep * held + (1 - keep) * np.tanh(new)
            shown.append(sigmoid(show))
        places = np.array(lengths)
        before = np.arange(len(past.keys)) < places[:, None, None, None]
        for ids, state, show in zip(tokens, states, shown, strict=True):
            entered, query, row = self._entered(ids, state + show * held, places + len(own))
            given.append(entered)
            queries.append(query)
            own.append(row)
        return [
            self._finished(one, self._over(query, past, before, own))
            for one, query in zip(given, queries, strict=True)
        ], held

    def _embedded(self, tokens: Ids) -> Floats:
        mask = self._weights[MASK]
        rows: Floats = np.where((tokens == _NONE)[:, None], mask, super()._embedded(np.maximum(tokens, 0)))
        return rows
