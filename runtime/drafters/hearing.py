"""What a target says early, read as its rule will choose in the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import default_rng

from paceline.memory.model import FRONTIER
from paceline.runtime.contracts import Early, Outcome, Scored, Verdict
from paceline.runtime.drafters.draw import Acceptance, Draw, make_draw
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree


class Ear:
    """Chooses from early laws with the penalties of a request, and its noise where that is shared; learns how often
    what it chose was what the target said.

    vocab: ids from here on are not heard.
    """

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._told = Acceptance()
        self._row = np.full(vocab, -np.inf, np.float32)
        self._draw: Draw | None = None
        self._of: TokenTree | None = None
        self._said: list[list[tuple[int, float]]] = []
        """By node of that tree: tokens and their estimates."""

    def begin(self, request: Request) -> None:
        """Choose as this request's rule will."""
        self._of = None
        self._row.fill(-np.inf)  # what was ended in the middle may have left something there
        self._draw = make_draw(
            request, self._vocab, default_rng([request.seed, request.number, 4]), picks=True
        )

    def choose(self, tree: TokenTree, early: Early, text: Sequence[int]) -> Early:
        """What may be chosen after every node of a tree behind a text, whose last token is the root."""
        ids = np.full((len(tree), FRONTIER), -1, np.int64)
        chances, rest = np.full(ids.shape, -np.inf, np.float32), np.ones(len(ids), np.float32)
        parents, tokens, draw = tree.parents.tolist(), tree.tokens.tolist(), self._draw
        histories, said = [list(text)], list[list[tuple[int, float]]]()
        for node, (law, odds) in enumerate(zip(early.ids, early.chances, strict=True)):
            if node:
                histories.append([*histories[parents[node]], tokens[node]])
            there = (law >= 0) & (law < self._vocab)
            self._row[law[there]] = odds[there]
            drawn = None if draw is None else draw.children(self._row, histories[node], FRONTIER)
            self._row[law[there]] = -np.inf
            said.append([] if drawn is None else [(t, min(s, 1.0)) for t, s in zip(*drawn[:2], strict=True)])
            least = 1.0
            for at, (token, score) in enumerate(said[node]):
                # A later one is never thought better than an earlier one.
                least = min(least, self._told.chance(1, score))
                ids[node, at], chances[node, at] = token, np.log(least)
            rest[node] = least
        self._of, self._said = tree, said
        return Early(ids, chances, rest)

    def observe(self, outcome: Outcome) -> None:
        """What the target has said of it in the end."""
        if outcome.tree is self._of:
            for node, token in zip(outcome.verdict.path, outcome.tokens, strict=True):
                self._told.learn(_judged(self._said[node], token), "early")
            self._of = None


def _judged(said: Sequence[tuple[int, float]], token: int) -> Outcome:
    """What was said of one token, as a tree that the target has looked at, and then chose this one."""
    named, scores = [token for token, _ in said], [score for _, score in said]
    tree = TokenTree.picked([0, *named], [-1, *[0] * len(said)], ["", *["early"] * len(said)], [1.0, *scores])
    path = (0, 1 + named.index(token)) if token in named else (0,)
    return Outcome(tree, Scored(np.zeros((1, 1), np.float32)), Verdict(path, token, 1))
