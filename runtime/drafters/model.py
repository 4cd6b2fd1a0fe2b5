"""Draft models: a chain, and a tree that grows level by level (EAGLE-2 2406.16858, OPT-Tree 2406.17276)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from paceline.runtime.contracts import DraftLimit, Outcome, Request
from paceline.runtime.draw import Draw, make_draw
from paceline.runtime.law import Law
from paceline.runtime.target import Mask, Model
from paceline.runtime.tree import TokenTree

_NOTHING: frozenset[str] = frozenset()


class ChainModel:
    """A draft model that continues the text by itself; it samples where the rule can use the law it drew from.

    It stops once a token's score falls below `confidence`: that token is still proposed, so the tree never
    depends on a drawn value that it leaves out.
    """

    needs = _NOTHING

    def __init__(
        self, model: Model, vocab: int, name: str = "chain", confidence: float = 0.3, seed: int = 0
    ) -> None:
        self.name = name
        self._model, self._vocab, self._confidence = model, min(vocab, model.part.vocab), confidence
        self._rng = np.random.default_rng([seed, 1])
        self._draw: Draw | None = None

    def footprint(self, limit: DraftLimit) -> int:
        """Its cache and the buffers of its passes."""
        return self._model.cache.bytes + self._model.logit_bytes

    def begin(self, request: Request) -> None:
        """Draw as this request's rule wants it; the random state is this drafter's own."""
        self._rng = np.random.default_rng([request.seed, request.number, 1])
        self._draw = make_draw(request, self._vocab, self._rng)

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """A chain of up to `limit.depth` tokens."""
        model, draw = self._model, self._draw
        depth = min(limit.nodes, limit.depth, model.context - len(tokens))
        if depth <= 0 or draw is None:
            return TokenTree.root(tokens[-1])
        row = _read(model, tokens)
        chain, dists, history = [tokens[-1]], dict[int, Law](), list(tokens)
        while True:
            drawn = draw.children(row[: self._vocab], history, 1)
            if not drawn.tokens:
                break
            if drawn.law is not None:
                dists[len(chain) - 1] = drawn.law
            chain.append(drawn.tokens[0])
            if len(chain) > depth or drawn.scores[0] < self._confidence or _late(limit):
                break
            history.append(drawn.tokens[0])
            row = model.extend(history[-1:])
        return TokenTree.chain(chain, self.name, dists)

    def observe(self, outcome: Outcome) -> None:
        """Nothing: the cache follows `tokens` by their longest common prefix."""

    def reset(self) -> None:
        """Empty the cache."""
        self._model.rewind(0)


class TreeModel:
    """A draft model that grows a tree; its nodes are picked, best first by the product of their scores.

    Each level expands the `frontier` best new nodes. It goes on while the best `limit.nodes` nodes together
    gain more than `step_cost` expected tokens, the price of one more draft pass in target passes.
    """

    needs = _NOTHING

    def __init__(
        self,
        model: Model,
        vocab: int,
        name: str = "tree",
        frontier: int = 4,
        step_cost: float = 0.15,
        seed: int = 0,
    ) -> None:
        self.name = name
        self._model, self._vocab = model, min(vocab, model.part.vocab)
        self._frontier, self._step_cost, self._seed = frontier, step_cost, seed
        self._draw: Draw | None = None
        self._rows: dict[tuple[int, int], int] = {}
        self._stamp = (-1, -1)

    def footprint(self, limit: DraftLimit) -> int:
        """Its cache with the scratch rows, and the buffers of its passes."""
        return self._model.cache.bytes + self._model.logit_bytes

    def begin(self, request: Request) -> None:
        """Pick as this request's rule wants it."""
        rng = np.random.default_rng([request.seed, request.number, 2])
        self._draw = make_draw(request, self._vocab, rng, picks=True)

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """A tree of at most `limit.nodes` picked nodes."""
        model, draw = self._model, self._draw
        depth = min(limit.depth, model.context - len(tokens))
        if min(limit.nodes, depth) <= 0 or draw is None:
            return TokenTree.root(tokens[-1])
        self._adopt(tokens)
        row = _read(model, tokens)
        grown = _Growth(tokens, self._vocab, self._frontier)
        fresh = grown.expand(draw, [0], row[None])
        for level in range(1, depth):
            if not grown.pays(limit.nodes, self._step_cost) or _late(limit):
                break
            chosen = grown.best(fresh, self._frontier)
            ids, mask, held = grown.level(chosen)
            if model.length + held + len(ids) > model.cache.capacity:
                break
            rows = model.grow(ids, [len(tokens) + level - 1] * len(ids), mask, held)
            fresh = grown.expand(draw, chosen, rows)
        self._rows = grown.rows()
        self._stamp = (model.passes_run, model.length)
        return grown.tree(limit.nodes, self.name)

    def observe(self, outcome: Outcome) -> None:
        """Nothing: the cache follows `tokens`, and accepted tree rows are taken over at the next proposal."""

    def reset(self) -> None:
        """Empty the cache."""
        self._model.rewind(0)
        self._rows = {}

    def _adopt(self, tokens: Sequence[int]) -> None:
        """Commit the rows of the last tree that the text went along with."""
        model = self._model
        held = model.keep_common(tokens)
        if self._stamp != (model.passes_run, held):
            return
        at, rows = 0, []
        for token in tokens[held:-1]:
            row = self._rows.get((at, token))
            if row is None:
                break
            rows.append(row)
            at = row + 1
        if rows:
            model.adopt(rows, tokens[held : held + len(rows)])


class _Growth:
    """Nodes of a tree that is growing. Node 0 is the root; node i > 0 has a parent, a token and a score."""

    def __init__(self, tokens: Sequence[int], vocab: int, frontier: int) -> None:
        self._tokens, self._vocab, self._frontier = tokens, vocab, frontier
        self._token = [tokens[-1]]
        self._parent = [-1]
        self._score = [1.0]
        self._fed: list[int] = []
        self._weight = 0.0

    def expand(self, draw: Draw, nodes: Sequence[int], rows: np.ndarray) -> list[int]:
        """Add the best children of every node; returns them."""
        fresh = []
        for node, row in zip(nodes, rows, strict=True):
            drawn = draw.children(row[: self._vocab], self._history(node), self._frontier)
            for token, score in zip(drawn.tokens, drawn.scores, strict=True):
                fresh.append(len(self._token))
                self._token.append(token)
                self._parent.append(node)
                self._score.append(self._score[node] * min(score, 1.0))
        return fresh

    def _history(self, node: int) -> list[int]:
        path = []
        while node > 0:
            path.append(self._token[node])
            node = self._parent[node]
        return [*self._tokens, *reversed(path)]

    def pays(self, nodes: int, cost: float) -> bool:
        """Whether the last level raised the weight of the best `nodes` nodes by more than `cost`."""
        weight = sum(sorted(self._score[1:], reverse=True)[:nodes])
        gain, self._weight = weight - self._weight, weight
        return gain > cost

    def best(self, nodes: Sequence[int], count: int) -> list[int]:
        """The best of these nodes, in their own order."""
        return sorted(sorted(nodes, key=lambda n: -self._score[n])[:count])

    def level(self, nodes: Sequence[int]) -> tuple[list[int], Mask, int]:
        """Tokens and mask [T, held + T] that feed these nodes after the rows fed before."""
        held = len(self._fed)
        at = {node: row for row, node in enumerate(self._fed)}
        mask = np.zeros((len(nodes), held + len(nodes)), np.bool_)
        for i, node in enumerate(nodes):
            mask[i, held + i] = True
            up = self._parent[node]
            while up > 0:
                mask[i, at[up]] = True
                up = self._parent[up]
        self._fed.extend(nodes)
        return [self._token[n] for n in nodes], mask, held

    def rows(self) -> dict[tuple[int, int], int]:
        """(1 + row of the parent, 0 for the root; token) -> scratch row."""
        at = {node: row for row, node in enumerate(self._fed)}
        return {(at.get(self._parent[n], -1) + 1, self._token[n]): row for n, row in at.items()}

    def tree(self, nodes: int, source: str) -> TokenTree:
        """The best nodes; a parent never scores less than its child, so none is orphaned."""
        order = sorted(range(1, len(self._score)), key=lambda n: (-self._score[n], n))[:nodes]
        chosen = [0, *sorted(order)]
        index = {node: i for i, node in enumerate(chosen)}
        return TokenTree.picked(
            [self._token[n] for n in chosen],
            [-1, *(index[self._parent[n]] for n in chosen[1:])],
            ["", *[source] * (len(chosen) - 1)],
        )


def _read(model: Model, tokens: Sequence[int]) -> np.ndarray:
    """Bring the cache up to `tokens` and return the logits after the last one."""
    held = model.keep_common(tokens)
    if held == len(tokens):
        held -= 1
        model.rewind(held)
    return model.extend(tokens[held:])


def _late(limit: DraftLimit) -> bool:
    return limit.deadline is not None and time.monotonic() > limit.deadline
