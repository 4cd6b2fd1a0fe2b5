"""How often the model with blocks left out chooses as the model itself, where it drafts: over the model's own rows.

All places of an answer are measured in one pass a level: each has its own row, which sees the model's cache before it
and what was drafted there, and nothing of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.export.errors import ExportError
from paceline.memory.cache import CacheFormat, KeyValueCache
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.bundle.precision import cache_form
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model

LEVELS = 4
"""Tokens that are drafted at each place where a set is measured to the end."""
_LEAST = 8
"""Tokens of an answer that is worth measuring."""

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Piece:
    """A prompt with the model's greedy answer, and the model's cache of both."""

    tokens: npt.NDArray[np.int64]
    prompt: int
    cache: KeyValueCache

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """Where a token of the answer is drafted: the places before those."""
        return np.arange(self.prompt - 1, len(self.tokens) - 1)


class Yardstick:
    """Answers of a bundle's target, and measures parts of kind `skip` on them."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._bundle, self._threads, self._part = bundle, threads, bundle.manifest.target
        self.form: CacheFormat = cache_form(bundle.manifest, None)
        path = self._part.graph_for(self.form)
        self._device = find_device("cpu")
        self.graph = Graph(bundle.path(path), self._device, threads, self._part, raw=bundle.read_graph(path))
        self._ends = frozenset(bundle.generation.eos_ids)

    def answer(self, prompt: Sequence[int], longest: int) -> Piece | None:
        """What the model says to these token ids, greedily; None where it is next to nothing."""
        room = longest + LEVELS * longest
        context = min(len(prompt) + longest, self._part.context)
        model = Model(self.graph, self._part, context, 1, scratch=room, cache=self.form)
        model.prepare(len(prompt) + 1)
        model.prefill(prompt[:-1])
        tokens = list(prompt)
        while len(tokens) < context and (len(tokens) == len(prompt) or tokens[-1] not in self._ends):
            tokens.append(int(model.extend(tokens[-1:]).argmax()))
        if len(tokens) - len(prompt) < _LEAST:
            return None
        assert isinstance(model.cache, KeyValueCache)
        return Piece(np.array(tokens), len(prompt), model.cache)

    def open(self, part: Part, raw: bytes) -> Graph:
        """A graph over the target's weights, of these bytes."""
        path = self._bundle.path(part.graph)
        return Graph(path, self._device, self._threads, part, raw=raw)

    def opened(self, part: Part | None = None, raw: bytes | None = None) -> Model:
        """The target, or the target with blocks left out, to be timed."""
        if part is None or raw is None:
            return Model(self.graph, self._part, self._part.context, 1 + LEVELS, cache=self.form)
        return Model(self.open(part, raw), part, part.context, 1, cache=self.form)

    def right(self, part: Part, graph: Graph, pieces: Sequence[Piece], levels: int) -> list[Flags]:
        """For each piece bool[places, levels]: which drafted tokens are the model's own; none beyond an answer."""
        return [self._right(part, graph, piece, levels) for piece in pieces]

    def _right(self, part: Part, graph: Graph, piece: Piece, levels: int) -> Flags:
        places, n = piece.places, len(piece.tokens) - 1
        t = len(places)
        found = np.zeros((t, levels), np.bool_)
        model = Model(graph, part, n, t, chunk=1, scratch=n + levels * t, cache=self.form, rows=piece.cache)
        model.prepare(piece.prompt + 1)
        model.tokens = piece.tokens[:-1].tolist()
        before = np.arange(n)[None] < places[:, None]
        tokens, own = piece.tokens[places], np.eye(t, dtype=np.bool_)
        for level in range(levels):
            mask = np.concatenate([before, *[own] * (level + 1)], axis=1)
            rows = model.grow(tokens.tolist(), (places + level).tolist(), mask, level * t)
            tokens = rows.argmax(axis=1)
            there = places + level + 1 <= n
            found[there, level] = tokens[there] == piece.tokens[places[there] + level + 1]
        return found


def agreement(right: Sequence[Flags]) -> float:
    """The share of first drafted tokens that are the model's own."""
    return float(np.concatenate([flags[:, 0] for flags in right]).mean())


def accepted(right: Sequence[Flags]) -> list[float]:
    """By depth, the share of drafted tokens that are the model's own where all before were; ends where none is left."""
    shares = list[float]()
    for level in range(right[0].shape[1]):
        # Of the last places of an answer deeper tokens are not known.
        runs = [flags[: len(flags) - level, : level + 1] for flags in right if len(flags) > level]
        whole = [run[run[:, :level].all(axis=1), level] for run in runs]
        if not whole or not (hits := np.concatenate(whole)).size:
            break
        shares.append(float(hits.mean()))
    return shares


def round_tokens(right: Sequence[Flags], depth: int) -> float:
    """Tokens a round where chains of so many tokens are drafted, as decoding walks through the answers."""
    tokens = rounds = 0
    for flags in right:
        at = 0
        while at < len(flags):
            run = flags[at, :depth]
            step = 1 + (int(run.argmin()) if not run.all() else len(run))
            tokens, rounds, at = tokens + min(step, len(flags) - at), rounds + 1, at + step
    if not rounds:
        raise ExportError("there is no answer to measure on: give a longer text")
    return tokens / rounds
