"""A draft head: it reads hidden states of the target, and drafts several levels in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from paceline.runtime.contracts import Array, common_prefix
from paceline.runtime.model.contract import Shapes, draft_contract, tree_contract
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.passes import Bound
from paceline.runtime.model.window import window
from paceline.runtime.part import CHILDREN, tree_shape

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Features(Protocol):
    """Hidden states of the target, a row a committed token."""

    epoch: int
    """Changes when all rows were forgotten: those of the same tokens may be others then."""

    @property
    def held(self) -> range:
        """The rows that are known."""

    def rows(self, tap: str, start: int, stop: int) -> Array:
        """float32[stop - start, hidden]. Raises ValueError for what is not held."""


class Shape(NamedTuple):
    """A tree of so many levels; so many nodes of each but the last have children."""

    depth: int
    width: int


class Branches(NamedTuple):
    """A drafted tree. tokens: ids of the target int64[N, C], the children of every node that has any, best first; the
    root's stand first, then those of each level. chances: the logarithms of theirs given their parent, float32[N, C].
    parents: int64[N - 1], where each such node but the root stands among all tokens, row after row. scores: the root's,
    float32[1, V]. The next draft overwrites all.
    """

    tokens: Ids
    chances: Floats
    parents: Ids
    scores: Floats


class Head:
    """Runs a part of kind `head`: `read` brings its state up to a text, `draft` goes on from there.

    What it reads are pairs: the hidden states of a row of the target, and the token after it. Where it attends, the
    pairs' rows stand in the cache of `model`. ids: what the columns of its scores stand for, ids of the target. opened:
    its graph of this path. Raises BundleError for a graph that is not what the manifest says.
    """

    def __init__(self, model: Model, ids: Ids, opened: Callable[[str], Graph]) -> None:
        part = model.part
        self.model, self.ids, self._opened = model, ids, opened
        self.depths = tuple(sorted(part.drafts))
        """Levels that there are graphs for."""
        self.trees = tuple(sorted(Shape(*tree_shape(name)) for name in part.trees))
        """Trees that there are graphs for."""
        self.worth: dict[Shape, float] = {}
        """How many levels of a chain take as long as each tree, where that was measured."""
        deepest, columns = self.depths[-1], part.vocab
        self.noise: Floats = np.zeros((deepest, columns), np.float32)
        """Added to the logits of each level before its token is chosen; whoever drafts writes into it."""
        self.kept: Floats = np.zeros((deepest, columns), np.float32)
        """As much again, for whoever writes the noise."""
        self._scores = np.zeros((deepest, columns), np.float32)
        self._tokens = np.zeros(deepest, np.int64)
        self._state = np.zeros((1, part.hidden), np.float32)
        self._token, self._past = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._scale = np.ones(1, np.float32)
        self._bound: dict[int, Bound] = {}
        self._grown: dict[Shape, tuple[Bound, Branches, Ids]] = {}
        self._text: list[int] = []
        self._from, self._read = (-1, 0), (-1, -1)

    @property
    def context(self) -> int:
        """Pairs that it reads at most."""
        return self.model.context

    @property
    def bytes(self) -> int:
        """Bytes of the buffers of its drafts."""
        return self.noise.nbytes + self.kept.nbytes + self._scores.nbytes + sum(map(tree_bytes, self.trees))

    def open(self) -> None:
        """Open every graph, and make its buffers resident."""
        for buffer in (self.noise, self.kept, self._scores):
            buffer.fill(0)
        for levels in self.depths:
            self._draft(levels)
        for shape in self.trees:
            self._tree(shape)

    def read(self, tokens: Sequence[int], features: Features | None) -> bool:
        """Bring the state up to a text, whose last token is the root; False where nothing is held of its last pair.

        Pairs before those that are held, or that its cache has no room for, are left out.
        """
        model, part, pairs = self.model, self.model.part, len(tokens) - 1
        first = max(pairs - 1, 0)
        if part.layers and features is not None:
            first = max(window(pairs, model.context, 0).start, features.held.start)
        if features is None or not (features.held.start <= first < pairs <= features.held.stop):
            return False
        same, known = 0, common_prefix(self._text, tokens)
        if self._from == (features.epoch, first):
            same = min(max(known - 1 - first, 0), model.length)
        if same == pairs - first == model.length and self._read == (model.passes_run, same):
            return True
        model.rewind(min(same, pairs - first - 1))  # of the last pair the state is wanted
        self._from, self._text[known:] = (features.epoch, first), tokens[known:]
        while (at := first + model.length) < pairs:
            end = min(at + model.chunk, pairs)
            read = [features.rows(tap, at, end) for tap in part.reads]
            fed = read[0] if len(read) == 1 else np.concatenate(read, axis=1)
            if end == pairs:
                self._state[0] = model.extend(tokens[at + 1 : end + 1], fed)
            else:
                model.prefill(tokens[at + 1 : end + 1], fed)
        self._read = model.passes_run, model.length
        return True

    def reach(self, levels: int) -> int:
        """The least depth that there is a graph for and that has so many levels, or else the largest."""
        return next((depth for depth in self.depths if depth >= levels), self.depths[-1])

    def draft(self, levels: int, root: int) -> tuple[Ids, Floats]:
        """Ids of the target int64[D], and scores float32[D, V], of D = `reach(levels)` levels after a root.

        The next call overwrites both.
        """
        depth = self.reach(levels)
        self._token[0], self._past[0] = root, self.model.length
        self._draft(depth).run()
        return self._tokens[:depth], self._scores[:depth]

    def draft_tree(self, shape: Shape, root: int, scale: float) -> Branches:
        """A tree of one of `trees` after a root, whose chances are in proportion to `exp(scale * score)`."""
        bound, found, offsets = self._tree(shape)
        self._token[0], self._past[0], self._scale[0] = root, self.model.length, scale
        bound.run()
        return found._replace(parents=found.parents + offsets)

    def probe_tree(self, shape: Shape, past: int) -> None:
        """What drafting a tree takes, for its time alone, as `probe`."""
        self.model.probe(1, past if self.model.part.layers else 0)
        self._past[0], self._scale[0] = past, 1.0
        self._tree(shape)[0].run()

    def probe(self, rows: int, past: int) -> None:
        """What drafting so many levels takes, for its time alone: one pair is read, after `past` others."""
        self.model.probe(1, past if self.model.part.layers else 0)
        self._past[0] = past
        self._draft(self.reach(rows)).run()

    def forget(self) -> None:
        """Empty its cache."""
        self.model.rewind(0)

    def close(self) -> None:
        """Give all memory but the graphs' and its model's back; it cannot run again."""
        self._bound.clear()
        self._grown.clear()
        self.noise, self.kept, self._scores = (b[:0].copy() for b in (self.noise, self.kept, self._scores))

    def _draft(self, depth: int) -> Bound:
        if depth not in self._bound:
            part, form = self.model.part, self.model.cache.form
            made: dict[str, Array] = {"tokens": self._tokens[:depth], "scores": self._scores[:depth]}
            contract = draft_contract(part, form, depth)
            self._bound[depth] = self._bind(part.draft_for(depth, form), contract, depth, made)
        return self._bound[depth]

    def _tree(self, shape: Shape) -> tuple[Bound, Branches, Ids]:
        """Its graph, what that writes, and where the children of the level above each parent begin."""
        if shape not in self._grown:
            part, form, (depth, width) = self.model.part, self.model.cache.form, shape
            later = (depth - 1) * width
            found = Branches(
                np.zeros((1 + later, part.children), np.int64),
                np.zeros((1 + later, part.children), np.float32),
                np.zeros(later, np.int64),
                self._scores[:1],
            )
            contract = tree_contract(part, form, depth, width)
            path = part.tree_for(f"{depth}x{width}", form)
            above = np.repeat(np.arange(depth - 1), width)
            offsets = np.where(above > 0, part.children * (1 + (above - 1) * width), 0)
            self._grown[shape] = self._bind(path, contract, depth, found._asdict()), found, offsets
        return self._grown[shape]

    def _bind(self, path: str, contract: tuple[Shapes, Shapes], depth: int, made: dict[str, Array]) -> Bound:
        graph, model = self._opened(path), self.model
        graph.check(*contract)
        own = {
            "state": self._state,
            "token": self._token,
            "noise": self.noise[:depth],
            "past_len": self._past,
            "scale": self._scale,
        }
        given: dict[str, Any] = {**own, **model.cache.inputs(), **model.adapters}
        return Bound(graph, {name: given[name] for name in contract[0]}, made)


class TreeProbe:
    """A head as something that runs passes of one kind: each drafts a tree of this shape."""

    def __init__(self, head: Head, shape: Shape) -> None:
        self._head, self._shape = head, shape

    @property
    def context(self) -> int:
        """Pairs that it reads at most."""
        return self._head.context

    def probe(self, rows: int, past: int) -> None:
        """Draft a tree after so many pairs; it is one pass, whatever `rows` says."""
        self._head.probe_tree(self._shape, past)


def tree_bytes(shape: Shape) -> int:
    """Of what a tree is written to: two numbers a child, and a place a parent."""
    later = (shape.depth - 1) * shape.width
    return 12 * CHILDREN * (1 + later) + 8 * later
