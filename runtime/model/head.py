"""A draft head: a graph without a cache, from hidden states of the target to logits of the tokens after it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paceline.runtime.contracts import Array, Logits
from paceline.runtime.manifest import Part
from paceline.runtime.model.adapters import adapters_of
from paceline.runtime.model.contract import contract
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.passes import Bound


class Head:
    """Runs a part of kind `head`. adapters: the weights that are inputs of its graph, by name; write into them.

    Raises BundleError, before anything is allocated, for a graph that is not what the manifest says.
    """

    def __init__(self, graph: Graph, part: Part, widest: int) -> None:
        graph.check(*contract(part, "fp32"))
        if part.features is None:
            raise ValueError(f"a {part.kind} is no head: it is fed with nothing")
        self.part, self.context, self.widest, self._graph = part, part.context, widest, graph
        self.adapters = adapters_of(part)
        self._bound: dict[int, tuple[Bound, npt.NDArray[np.int64], Array, Logits]] = {}

    @property
    def provider(self) -> str:
        """The execution provider that runs it."""
        return self._graph.provider

    @property
    def bytes(self) -> int:
        """Bytes of the buffers of its passes, were there one of every width."""
        row = 8 + 4 * (self.part.features or 0) + 4 * self.part.ahead * self.part.vocab
        return row * self.widest * (self.widest + 1) // 2

    def probe(self, rows: int, past: int) -> None:
        """A pass for its time alone; what came before it costs a head nothing."""
        self.score([0] * rows, np.zeros((rows, self.part.features or 0), np.float32))

    def close(self) -> None:
        """Give all memory but the graph's back; the next pass takes it again."""
        self._bound.clear()

    def score(self, tokens: Sequence[int], features: Array) -> Logits:
        """float32[T, ahead, V] for the hidden states `[T, features]` of T tokens; the next pass overwrites it.

        Raises ValueError for more than `widest` rows, or another number of columns.
        """
        if not 0 < len(tokens) <= self.widest or features.shape != (len(tokens), self.part.features):
            raise ValueError(
                f"a head for up to {self.widest} rows of {self.part.features} columns cannot read {len(tokens)} tokens "
                f"with features of shape {features.shape}"
            )
        bound, ids, rows, logits = self._bound.get(len(tokens)) or self._bind(len(tokens))
        ids[:], rows[:] = tokens, features
        bound.run()
        return logits

    def _bind(self, n: int) -> tuple[Bound, npt.NDArray[np.int64], Array, Logits]:
        part = self.part
        ids, rows = np.zeros(n, np.int64), np.zeros((n, part.features or 0), np.float32)
        logits = np.zeros((n, part.ahead, part.vocab), np.float32)
        bound = Bound(self._graph, {"token_ids": ids, "features": rows, **self.adapters}, {"logits": logits})
        self._bound[n] = bound, ids, rows, logits
        return self._bound[n]
