"""Table language models: exact, tiny, and fast enough to enumerate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.runtime.contracts import Scored
from paceline.runtime.tree import TokenTree


class TableModel:
    """Logits are a fixed random function of the last `order` tokens. `sharpness` scales them."""

    def __init__(self, vocab: int = 8, order: int = 2, sharpness: float = 2.0, seed: int = 0) -> None:
        self.vocab, self.order, self.sharpness, self.seed = vocab, order, sharpness, seed

    def row(self, prefix: Sequence[int]) -> np.ndarray:
        """float32[vocab] after `prefix`."""
        key = [self.seed, *(int(t) + 1 for t in tuple(prefix)[-self.order :])]
        return (np.random.default_rng(key).normal(size=self.vocab) * self.sharpness).astype(np.float32)


class TableTarget:
    """A `Target` over a TableModel; it checks that its cache holds what it was told to commit."""

    def __init__(self, model: TableModel) -> None:
        self.model = model
        self.rows: list[int] = []
        self._tree: TokenTree | None = None
        self.passes = 0

    @property
    def length(self) -> int:
        return len(self.rows)

    def prefill(self, tokens: Sequence[int]) -> Scored:
        self.rows.extend(int(t) for t in tokens)
        return Scored(np.zeros((0, self.model.vocab), np.float32))

    def score(self, tree: TokenTree) -> Scored:
        self._tree = tree
        self.passes += 1
        rows = [
            self.model.row(self.rows + [int(tree.tokens[n]) for n in tree.path(node)])
            for node in range(len(tree))
        ]
        return Scored(np.stack(rows))

    def commit(self, path: tuple[int, ...]) -> None:
        assert self._tree is not None
        self.rows.extend(int(self._tree.tokens[n]) for n in path)
        self._tree = None

    def rewind(self, length: int) -> None:
        del self.rows[length:]
