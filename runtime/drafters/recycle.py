"""Token Recycling (arXiv 2408.08696): what the target ranked high after a token is drafted after it again."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.ops.vocabulary import top_k
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree

WIDTH = 8
"""Successors of a token that are kept."""
ENTRY_BYTES = 5
"""Of the matrix, for each successor: its id and level."""
_LEVELS = 4
"""Degrees of the target's confidence that are told apart; one more stands for tokens seen in a prompt."""
_SEEN = _LEVELS
_LEAST = 0.02
"""Nodes less probable than this are left out, however cheap."""
_STRENGTH = 16.0
"""Observations that the first guess of an acceptance counts as."""
_MEMORY = 400.0
"""Observations after which older ones fade."""


class Recycle:
    """A matrix of the best successors of every token, refreshed from every row of logits that passes by.

    The tree grows best first: a successor is as probable as those of its rank and confidence were before.
    Nodes less probable than `worth` are left out. What was learnt belongs to the model, so `reset` keeps it.
    """

    name = "recycle"
    needs: frozenset[str] = frozenset()

    def __init__(self, vocab: int, width: int = WIDTH, worth: float = 0.1) -> None:
        if vocab < 1 or width < 1:
            raise ValueError(
                f"a matrix of {vocab} tokens by {width} successors holds nothing: use 1 or more of each"
            )
        self._vocab, self._width, self._worth = vocab, min(width, vocab), worth
        self._next: npt.NDArray[np.int32] = np.empty((vocab, self._width), np.int32)
        self._level: npt.NDArray[np.uint8] = np.empty((vocab, self._width), np.uint8)
        self._forget()

    def footprint(self, limit: DraftLimit) -> int:
        """The matrix: five bytes for each of its entries."""
        return self._next.nbytes + self._level.nbytes

    def begin(self, request: Request) -> None:
        """Where the output depends on what is drafted, earlier answers may not choose it."""
        if request.draft_dependent:
            self._forget()

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """The most probable nodes, best first; one node where the last token is new."""
        chosen, parents, depths = [int(tokens[-1])], [-1], [0]
        following, levels, chances = self._next, self._level, self._chance.table
        frontier: list[tuple[float, int, int, int]] = []  # -score, serial number, parent, token
        node, score, serial = 0, 1.0, 0
        worth = _LEAST if limit.priced else self._worth
        while True:
            if depths[node] < limit.depth and len(chosen) <= limit.nodes:
                row = zip(
                    following[chosen[node]].tolist(), levels[chosen[node]].tolist(), chances, strict=True
                )
                for token, level, chance in row:
                    value = score * chance[level]
                    if token >= 0 and value >= worth:
                        serial += 1
                        heappush(frontier, (-value, serial, node, token))
            if not frontier or len(chosen) > limit.nodes:
                break
            less, _, parent, token = heappop(frontier)
            if -less < limit.price(len(chosen)):
                break
            node, score = len(chosen), -less
            chosen.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
        if len(chosen) == 1:
            return TokenTree.root(chosen[0])
        return TokenTree.picked(chosen, parents, ("", *(self.name,) * (len(chosen) - 1)))

    def observe(self, outcome: Outcome) -> None:
        """Learn from every node that has logits; a chunk without logits teaches the pairs it holds."""
        tree, logits, verdict = outcome.tree, outcome.scored.logits, outcome.verdict
        path = list(verdict.path)
        said = [*tree.tokens[path].tolist(), verdict.next_token]
        if len(logits) != len(tree):
            for token, after in pairwise(said):
                self._see(token, after)
            return
        for token, after in pairwise(said):
            self._chance.learn(self._next[token].tolist(), self._level[token].tolist(), after)
        ids, values = top_k(logits[:, : self._vocab], self._width)
        level = _confidence(values)
        # Rows of accepted nodes come last: where a token stands twice, theirs stays.
        order = [*range(len(tree)), *path]
        tokens = tree.tokens[order]
        self._next[tokens] = ids[order]
        self._level[tokens] = level[order]
        self._chance.refresh()

    def reset(self) -> None:
        """Nothing: the matrix belongs to the model, not to the sequence."""

    def _forget(self) -> None:
        self._next.fill(-1)
        self._level.fill(0)
        self._chance = _Chance(self._width)

    def _see(self, token: int, after: int) -> None:
        """`after` followed `token` in a text: it comes first, the rest moves back."""
        row, level = self._next[token].tolist(), self._level[token].tolist()
        if row[0] == after and level[0] == _SEEN:
            return
        at = row.index(after) if after in row else len(row) - 1
        del row[at], level[at]
        self._next[token] = [after, *row]
        self._level[token] = [_SEEN, *level]


def _confidence(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Levels 0 to 3 by quarters of the softmax over the row's best values; uint8 of the same shape."""
    values = np.clip(values, np.float32(-1e30), np.float32(1e30))
    share = np.exp(values - values[:, :1])
    share *= np.float32(_LEVELS) / share.sum(axis=1, keepdims=True)
    levels: npt.NDArray[np.uint8] = np.minimum(share, np.float32(_LEVELS - 1)).astype(np.uint8)
    return levels


class _Chance:
    """table[rank][level]: how often a successor of this rank and confidence came true."""

    def __init__(self, width: int) -> None:
        # First guesses: means of a small model's greedy and sampled stories.
        first = [[0.3, 0.35, 0.4, 0.55, 0.4]]
        later = [[0.3 * 0.3**rank + 0.02, 0.15, 0.3, 0.4, 0.4 * 0.4**rank] for rank in range(1, width)]
        self.table = [*first, *later]
        self._true = [[guess * _STRENGTH for guess in row] for row in self.table]
        self._tried = [[_STRENGTH] * len(row) for row in self.table]
        self._new = 0

    def learn(self, row: list[int], levels: list[int], after: int) -> None:
        """`after` was chosen where the matrix had this row."""
        if row[0] < 0:
            return
        for token, level, true, tried in zip(row, levels, self._true, self._tried, strict=True):
            tried[level] += 1.0
            if token == after:
                true[level] += 1.0
        self._new += 1

    def refresh(self) -> None:
        """Bring the table up to date, now and then."""
        if self._new < 16:
            return
        self._new = 0
        for row, true, tried in zip(self.table, self._true, self._tried, strict=True):
            for level, count in enumerate(tried):
                row[level] = true[level] / count
                if count > _MEMORY:
                    true[level], tried[level] = true[level] / 2, count / 2
