"""Continuations of a text that a draft model has looked at, with their rows in the scratch of its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import nlargest

import numpy as np

from paceline.memory.model import FRONTIER
from paceline.runtime.contracts import Logits
from paceline.runtime.drafters.draw import Acceptance, Draw
from paceline.runtime.model.model import Model
from paceline.runtime.model.passes import Mask
from paceline.runtime.tree import TokenTree

ROOT = 0


class Grid:
    """A tree over a text that the model holds whole: node 0 is its last token.

    A node that was *fed* has a row in the cache behind the committed ones, and the children that the model named. Its
    chance is that the text goes on with it where it reached its parent, its weight that the text goes through it, as
    far as estimates tell. `window`: the nodes that the target looks at.
    """

    def __init__(self, model: Model, tokens: Sequence[int], known: Acceptance) -> None:
        self._model, self.text, self._known = model, tokens, known
        self.tokens, self.parents, self.depths = [tokens[-1]], [-1], [0]
        self.scores = [1.0]
        """The model's own estimate that a node is accepted if its parent is."""
        self.chances = [1.0]
        self.weights = [1.0]
        self.children: dict[int, list[int]] = {}
        """Those that the model named first, the likeliest first."""
        self.fed: set[int] = set()
        self.window = {ROOT}
        self._said: dict[int, float] = {}
        """By node of which somebody else said what follows: the chance of what that did not name, at most."""
        self._told: set[int] = set()
        """What that named."""
        self._rows: dict[int, int] = {}
        self._used = 0

    def expand(self, node: int, row: Logits, draw: Draw) -> None:
        """Add the children of a node, of which the model said this row."""
        drawn = draw.children(row, self.history(node), FRONTIER)
        others = self.children.get(node, [])
        named = list[int]()
        for token, score in zip(drawn.tokens, drawn.scores, strict=True):
            child = next((n for n in others if self.tokens[n] == token), None)
            if child is None:
                child = self._add(node, token, 1.0)
            self.scores[child] = min(score, 1.0)
            named.append(child)
        self.children[node] = [*named, *(n for n in others if n not in named)]
        self.fed.add(node)
        self._reckon(node)

    def _reckon(self, node: int) -> None:
        """The chances of the children that the model named, but of those of which somebody else has told."""
        depth, best = self.depths[node] + 1, self._said.get(node, 1.0)
        for child in self.children[node]:
            if self.scores[child] and child not in self._told:
                # A later sibling is never thought better than an earlier one.
                best = min(best, self._known.chance(depth, self.scores[child]))
                self.chances[child] = best
                self.weights[child] = self.weights[node] * best

    def _add(self, node: int, token: int, chance: float) -> int:
        self.tokens.append(token)
        self.parents.append(node)
        self.depths.append(self.depths[node] + 1)
        self.scores.append(0.0)
        self.chances.append(chance)
        self.weights.append(self.weights[node] * chance)
        return len(self.tokens) - 1

    def child(self, node: int, token: int, chance: float) -> int:
        """The child of a node with this token, which is made where there is none."""
        there = self.children.setdefault(node, [])
        found = next((n for n in there if self.tokens[n] == token), None)
        if found is None:
            found = self._add(node, token, chance)
            there.append(found)
        return found

    def cover(self, tree: TokenTree) -> list[int]:
        """The nodes of a tree behind the same text, in its order: they are the window. Those that lack are made."""
        nodes = [ROOT]
        for token, parent in zip(tree.tokens[1:].tolist(), tree.parents[1:].tolist(), strict=True):
            at = nodes[parent]
            nodes.append(self.child(at, token, self._known.usual(self.depths[at] + 1)))
        self.window = set(nodes)
        return nodes

    def hear(self, node: int, said: Sequence[tuple[int, float]], rest: float) -> None:
        """What the target says early of a node: what may follow, and its chances; of any other token `rest` at most."""
        for token, chance in said:
            at = self.child(node, token, chance)
            self.chances[at] = chance
            self._told.add(at)
        for other in self.children.get(node, ()):
            if other not in self._told:
                self.chances[other] = min(self.chances[other], rest)
        self._said[node] = rest

    def weigh(self) -> None:
        """Weigh all nodes anew, after chances have changed."""
        for node in range(1, len(self.tokens)):
            self.weights[node] = self.weights[self.parents[node]] * self.chances[node]

    def feed(self, nodes: Sequence[int], draw: Draw) -> bool:
        """Run the model on nodes whose parents were fed, or stand before them, and add their children.

        Returns whether it ran: there may be no node, or no row left.
        """
        model, past, held = self._model, self._model.length, self._used
        if not nodes or past + held + len(nodes) > model.cache.capacity:
            return False
        self._rows |= {node: held + i for i, node in enumerate(nodes)}
        mask = np.zeros((len(nodes), held + len(nodes)), np.bool_)
        for i, node in enumerate(nodes):
            for up in self.path(node)[1:]:
                mask[i, self._rows[up]] = True
        places = [past - 1 + self.depths[node] for node in nodes]
        rows = self._run(nodes, places, mask, held)
        self._used = held + len(nodes)
        for node, row in zip(nodes, rows, strict=True):
            self.expand(node, row, draw)
        self.weigh()
        return True

    def _run(self, nodes: Sequence[int], places: Sequence[int], mask: Mask, held: int) -> Logits:
        """As `Model.grow` does."""
        return self._model.grow([self.tokens[node] for node in nodes], places, mask, held)

    def waiting(self, count: int, worth: Callable[[int], float]) -> list[int]:
        """At most `count` nodes that are worth most, and more than 0, among those that can be fed now."""
        values = {
            node: value
            for node in range(1, len(self.tokens))
            if node not in self.fed
            and self.parents[node] in self.fed
            and self.feedable(node)
            and (value := worth(node)) > 0
        }
        return sorted(nlargest(count, values, key=values.__getitem__))

    def feedable(self, node: int) -> bool:
        """Whether the model knows its token, and holds a text that ends with it."""
        model = self._model
        return self.depths[node] <= model.context - model.length and self.tokens[node] < model.part.vocab

    def path(self, node: int) -> list[int]:
        """From the root to a node, both included."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def walk(self, tokens: Iterable[int]) -> list[int]:
        """The nodes of these tokens behind the root, as far as they are known."""
        node, found = ROOT, list[int]()
        for token in tokens:
            node = next((n for n in self.children.get(node, ()) if self.tokens[n] == token), -1)
            if node < 0:
                break
            found.append(node)
        return found

    def follow(self, tokens: Sequence[int]) -> Grid | None:
        """The part of it that goes on with these tokens, which the model then holds; None where it has nothing there.

        Then the model holds as many of them as were fed. Without tokens it is the grid itself.
        """
        way = [node for node in self.walk(tokens) if node in self.fed]
        if not tokens:
            return self
        if len(way) == len(tokens):
            return self._below(way[-1])
        self._model.adopt([self._rows[node] for node in way], [self.tokens[node] for node in way])
        return None

    def _over(self, tokens: Sequence[int]) -> Grid:
        """An empty one over another text."""
        return Grid(self._model, tokens, self._known)

    def _below(self, root: int) -> Grid:
        model, way = self._model, self.path(root)[1:]
        went = [self.tokens[node] for node in way]
        found = self._over([*self.text, *went])
        model.adopt([self._rows[node] for node in way], went)
        places, rows = {root: ROOT}, list[int]()
        for node in range(root + 1, len(self.tokens)):
            parent = places.get(self.parents[node])
            if parent is None:
                continue
            made = places[node] = found._add(parent, self.tokens[node], self.chances[node])
            found.scores[made] = self.scores[node]
            if node in self._rows:
                found._rows[made] = len(rows)
                rows.append(self._rows[node] - len(way))
        for node, made in places.items():
            if node in self.children:
                found.children[made] = [places[child] for child in self.children[node]]
            if node in self.fed:
                found.fed.add(made)
                found._reckon(made)
        found.weigh()
        order = sorted(range(len(rows)), key=rows.__getitem__)
        model.cache.gather(model.length, [model.length + rows[at] for at in order])
        moved = {at: new for new, at in enumerate(order)}
        found._rows = {node: moved[at] for node, at in found._rows.items()}
        found._used = len(rows)
        return found

    def history(self, node: int) -> list[int]:
        """The text up to a node."""
        return [*self.text, *(self.tokens[n] for n in self.path(node)[1:])]
