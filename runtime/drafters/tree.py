"""A draft model whose tree grows level by level (EAGLE-2 2406.16858, OPT-Tree 2406.17276)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.drafters.draw import Acceptance, Draw, make_draw
from paceline.runtime.model.model import Model
from paceline.runtime.model.passes import Mask
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree


class TreeModel:
    """A draft model that grows a tree; its nodes are picked, best first by the product of their scores.

    Each level expands the `frontier` best new nodes. It goes on while the last level gained more expected tokens
    than the price of one more draft pass; of all nodes the best stay, as many as are worth their price.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        model: Model,
        vocab: int,
        name: str = "tree",
        frontier: int = 4,
        seed: int = 0,
    ) -> None:
        self.name = name
        self._model, self._all, self._vocab = model, vocab, min(vocab, model.part.vocab)
        self._frontier, self._seed = frontier, seed
        self._draw: Draw | None = None
        self._acceptance: Acceptance | None = None
        self._learnt = Acceptance()
        self._rows: dict[tuple[int, int], int] = {}
        self._stamp = (-1, -1)

    def footprint(self, limit: DraftLimit) -> int:
        """Its cache with the scratch rows, and the buffers of its passes."""
        return self._model.cache.bytes + self._model.logit_bytes

    def begin(self, request: Request) -> None:
        """Pick as this request's rule wants it."""
        rng = np.random.default_rng([request.seed, request.number, 2])
        self._draw = make_draw(request, self._vocab, rng, picks=True)
        self._acceptance = None if request.draft_dependent else self._learnt

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """A tree of at most `limit.nodes` picked nodes."""
        model, draw = self._model, self._draw
        seen = model.readable(tokens, self._all)
        depth = min(limit.depth, model.context - len(seen))
        if min(limit.nodes, depth) <= 0 or draw is None:
            return TokenTree.root(tokens[-1])
        self._adopt(seen)
        row = model.read(seen)
        grown = _Growth(tokens, self._vocab, self._frontier, self._acceptance)
        fresh = grown.expand(draw, [0], row[None])
        for level in range(1, depth):
            if not grown.pays(limit):
                break
            chosen = grown.best(fresh, self._frontier)
            ids, mask, held = grown.level(chosen)
            if model.length + held + len(ids) > model.cache.capacity:
                break
            rows = model.grow(ids, [len(seen) + level - 1] * len(ids), mask, held)
            fresh = grown.expand(draw, chosen, rows)
        self._rows = grown.rows()
        self._stamp = (model.passes_run, model.length)
        return grown.tree(limit, self.name)

    def observe(self, outcome: Outcome) -> None:
        """What its scores came to; accepted tree rows are taken over at the next proposal."""
        if self._acceptance is not None:
            self._acceptance.learn(outcome, self.name)

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

    def __init__(
        self, tokens: Sequence[int], vocab: int, frontier: int, acceptance: Acceptance | None
    ) -> None:
        self._tokens, self._vocab, self._frontier = tokens, vocab, frontier
        self._acceptance = acceptance
        self._token = [tokens[-1]]
        self._parent = [-1]
        self._depth = [0]
        self._own = [1.0]  # estimates of the draft model, given the parent
        self._score = [1.0]
        self._fed: list[int] = []
        self._weight = 0.0

    def expand(self, draw: Draw, nodes: Sequence[int], rows: np.ndarray) -> list[int]:
        """Add the best children of every node; returns them."""
        fresh, known = [], self._acceptance
        for node, row in zip(nodes, rows, strict=True):
            depth, above, best = self._depth[node] + 1, self._score[node], 1.0
            drawn = draw.children(row[: self._vocab], self._history(node), self._frontier)
            for token, score in zip(drawn.tokens, drawn.scores, strict=True):
                fresh.append(len(self._token))
                self._token.append(token)
                self._parent.append(node)
                self._depth.append(depth)
                self._own.append(min(score, 1.0))
                # A later sibling is never thought better than an earlier one.
                best = min(best, self._own[-1] if known is None else known.chance(depth, self._own[-1]))
                self._score.append(above * best)
        return fresh

    def _history(self, node: int) -> list[int]:
        path = []
        while node > 0:
            path.append(self._token[node])
            node = self._parent[node]
        return [*self._tokens, *reversed(path)]

    def pays(self, limit: DraftLimit) -> bool:
        """Whether the last level raised what the best nodes are worth by more than a pass."""
        order = sorted(self._score[1:], reverse=True)[: limit.nodes]
        worth = [score - limit.price(n) for n, score in enumerate(order, 1)]
        weight = sum([w for w in worth if w > 0])
        gain, self._weight = weight - self._weight, weight
        return gain > limit.step_price

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

    def tree(self, limit: DraftLimit, source: str) -> TokenTree:
        """The best nodes that are worth it; a parent never scores less than its child, so none is orphaned."""
        order = sorted(range(1, len(self._score)), key=lambda n: (-self._score[n], n))[: limit.nodes]
        order = [n for rank, n in enumerate(order, 1) if self._score[n] >= limit.price(rank)]
        chosen = [0, *sorted(order)]
        index = {node: i for i, node in enumerate(chosen)}
        return TokenTree.picked(
            [self._token[n] for n in chosen],
            [-1, *(index[self._parent[n]] for n in chosen[1:])],
            ["", *[source] * (len(chosen) - 1)],
            [self._own[n] for n in chosen],
        )
