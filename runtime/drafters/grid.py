"""Continuations of a text that a draft model has looked at, with their rows in the scratch of its cache."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest

import numpy as np

from paceline.memory.model import FRONTIER
from paceline.runtime.contracts import Logits
from paceline.runtime.drafters.draw import Acceptance, Draw
from paceline.runtime.model.model import Model

ROOT = 0


class Grid:
    """A tree over a text that the model holds whole: node 0 is its last token.

    A node that was *fed* has a row in the cache behind the committed ones, and children. Its weight is the chance that
    the text goes through it, as far as estimates tell.
    """

    def __init__(self, model: Model, tokens: Sequence[int], known: Acceptance) -> None:
        self._model, self._text, self._known = model, tokens, known
        self.tokens, self.parents, self.depths = [tokens[-1]], [-1], [0]
        self.scores = [1.0]
        """The model's own estimate that a node is accepted if its parent is."""
        self.weights = [1.0]
        self.children: dict[int, list[int]] = {}
        """Of every fed node, the likeliest first."""
        self._rows: dict[int, int] = {}
        self._used = 0

    def expand(self, node: int, row: Logits, draw: Draw) -> None:
        """Add the children of a node, of which the model said this row."""
        depth, above, best = self.depths[node] + 1, self.weights[node], 1.0
        drawn = draw.children(row, self._history(node), FRONTIER)
        found = self.children[node] = []
        for token, score in zip(drawn.tokens, drawn.scores, strict=True):
            own = min(score, 1.0)
            # A later sibling is never thought better than an earlier one.
            best = min(best, self._known.chance(depth, own))
            found.append(len(self.tokens))
            self.tokens.append(token)
            self.parents.append(node)
            self.depths.append(depth)
            self.scores.append(own)
            self.weights.append(above * best)

    def feed(self, nodes: Sequence[int], draw: Draw) -> bool:
        """Run the model on nodes whose parents were fed, and add their children.

        Returns whether it ran: there may be no node, or no row left.
        """
        model, past, held = self._model, self._model.length, self._used
        if not nodes or past + held + len(nodes) > model.cache.capacity:
            return False
        mask = np.zeros((len(nodes), held + len(nodes)), np.bool_)
        for i, node in enumerate(nodes):
            mask[i, held + i] = True
            for up in self.path(self.parents[node])[1:]:
                mask[i, self._rows[up]] = True
        places = [past - 1 + self.depths[node] for node in nodes]
        rows = model.grow([self.tokens[node] for node in nodes], places, mask, held)
        for i, node in enumerate(nodes):
            self._rows[node] = held + i
        self._used = held + len(nodes)
        for node, row in zip(nodes, rows, strict=True):
            self.expand(node, row, draw)
        return True

    def waiting(self, count: int) -> list[int]:
        """At most `count` nodes of most weight among those that were not fed and lie within the model's context."""
        deepest = self._model.context - len(self._text)
        unfed = [
            node
            for node in range(1, len(self.tokens))
            if node not in self.children and self.depths[node] <= deepest
        ]
        return sorted(nlargest(count, unfed, key=self.weights.__getitem__))

    def path(self, node: int) -> list[int]:
        """From the root to a node, both included."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def follow(self, tokens: Sequence[int]) -> Grid | None:
        """The part of it that goes on with these tokens, which the model then holds; None where it has nothing there.

        Without tokens it is the grid itself.
        """
        node = ROOT
        for token in tokens:
            node = next((n for n in self.children.get(node, ()) if self.tokens[n] == token), -1)
            if node < 0 or node not in self.children:
                return None
        return self._below(node) if node != ROOT else self

    def _below(self, root: int) -> Grid:
        model, way = self._model, self.path(root)[1:]
        went = [self.tokens[node] for node in way]
        found = Grid(model, [*self._text, *went], self._known)
        model.adopt([self._rows[node] for node in way], went)
        places, rows, above = {root: ROOT}, list[int](), self.weights[root]
        depth = self.depths[root]
        for node in range(root + 1, len(self.tokens)):
            if self.parents[node] not in places:
                continue
            places[node] = len(found.tokens)
            found.tokens.append(self.tokens[node])
            found.parents.append(places[self.parents[node]])
            found.depths.append(self.depths[node] - depth)
            found.scores.append(self.scores[node])
            found.weights.append(self.weights[node] / above if above > 0 else 0.0)
            if node in self._rows:
                found._rows[places[node]] = len(rows)
                rows.append(self._rows[node] - len(way))
        for node, place in places.items():
            if node in self.children:
                found.children[place] = [places[child] for child in self.children[node]]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        model.cache.gather(model.length, [model.length + rows[at] for at in order])
        moved = {at: new for new, at in enumerate(order)}
        found._rows = {node: moved[at] for node, at in found._rows.items()}
        found._used = len(rows)
        return found

    def _history(self, node: int) -> list[int]:
        return [*self._text, *(self.tokens[n] for n in self.path(node)[1:])]
