"""A tree of drafted tokens: its root is the last chosen token, every path from it is one possible future."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from paceline.runtime.law import Law

Ids = npt.NDArray[np.int64]
Links = npt.NDArray[np.int32]


_LONGEST_KEPT = 64
"""Masks of longer chains are made anew: kept, they would add up to megabytes in a long chat."""


class _Line(NamedTuple):
    """The arrays that all chains of one length share, read-only."""

    parents: Links
    draw: Links
    depths: Ids


@lru_cache(maxsize=256)
def _line(n: int) -> _Line:
    parents, draw = np.arange(-1, n - 1, dtype=np.int32), np.full(n, -1, np.int32)
    line = _Line(parents, draw, np.arange(n, dtype=np.int64))
    for array in line:
        array.flags.writeable = False
    return line


@lru_cache(maxsize=_LONGEST_KEPT)
def _triangle(n: int) -> npt.NDArray[np.bool_]:
    mask = np.tri(n, dtype=np.bool_)
    mask.flags.writeable = False
    return mask


def proposers(source: str) -> list[str]:
    """The drafters that a node's source names, one that drew it first."""
    return source.split(",")


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Node 0 is the last chosen token, not yet in the target's cache; parents precede their children.

    tokens: int64[N]. parents: int32[N], `parents[0] == -1`.
    dists: node -> the law its children were SAMPLED from; a node that is absent had its children picked.
    A law's drawn children are all the draws that were made from it; picks may stand beside them.
    draw: int32[N], the order in which a node was drawn from its parent's law; -1 for the root and for picks.
    sources: who proposed each node, joined by commas; the root's is "".
    scores: the proposer's own estimate of the chance that each node is accepted if its parent is, in (0, 1], 0 where
    it has none; () where nobody has any. Arrays may be shared between trees: write to none.
    """

    tokens: Ids
    parents: Links
    draw: Links
    sources: tuple[str, ...]
    dists: Mapping[int, Law] = field(default_factory=dict)
    scores: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.sources)

    @classmethod
    def root(cls, token: int) -> TokenTree:
        """The tree of plain decoding: nothing drafted."""
        line = _line(1)
        return cls(np.array([token], np.int64), line.parents, line.draw, ("",))

    @classmethod
    def chain(
        cls,
        tokens: Sequence[int] | Ids,
        source: str = "",
        dists: Mapping[int, Law] | None = None,
        scores: Sequence[float] = (),
    ) -> TokenTree:
        """`tokens[0]` is the root, each further token the only child of the one before.

        With `dists` (node -> law) the child of that node was sampled from it.
        """
        n = len(tokens)
        line = _line(n)
        draw = line.draw
        if dists:
            draw = draw.copy()
            for node in dists:
                draw[node + 1] = 0
        sources = ("", *(source,) * (n - 1))
        return cls(np.asarray(tokens, np.int64), line.parents, draw, sources, dists or {}, tuple(scores))

    @classmethod
    def picked(
        cls,
        tokens: Sequence[int],
        parents: Sequence[int],
        sources: Sequence[str],
        scores: Sequence[float] = (),
    ) -> TokenTree:
        """A tree whose nodes were all picked, none sampled."""
        ids, links = np.asarray(tokens, np.int64), np.asarray(parents, np.int32)
        return cls(ids, links, _line(len(tokens)).draw, tuple(sources), scores=tuple(scores))

    def children(self, node: int) -> list[int]:
        """Nodes whose parent is `node`: drawn ones first, in the order they were drawn, then the picks."""
        size = len(self.sources)
        if self.parents is _line(size).parents:
            return [node + 1] if node + 1 < size else []
        found: list[int] = (self.parents == node).nonzero()[0].tolist()
        if len(found) > 1 and node in self.dists:
            draw = self.draw
            found.sort(key=lambda c: (draw[c] < 0, draw[c], c))
        return found

    def path(self, node: int) -> tuple[int, ...]:
        """Nodes from the root to `node`, both included."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = int(self.parents[node])
        return tuple(reversed(nodes))

    def depths(self) -> Ids:
        """int64[N], 0 for the root."""
        if self.is_chain():
            return _line(len(self.sources)).depths
        depths = [0]
        for parent in self.parents.tolist()[1:]:
            depths.append(depths[parent] + 1)
        return np.array(depths, np.int64)

    def is_chain(self) -> bool:
        """Whether every node is the only child of the node before it."""
        line = _line(len(self.sources)).parents
        return self.parents is line or self.parents.tobytes() == line.tobytes()

    def mask(self) -> npt.NDArray[np.bool_]:
        """bool[N, N]: row i is true at its ancestors and at i itself."""
        n = len(self)
        if self.is_chain():
            return _triangle(n) if n <= _LONGEST_KEPT else np.tri(n, dtype=np.bool_)
        seen = [1]  # one integer per row, bit j for column j
        for node, parent in enumerate(self.parents.tolist()[1:], 1):
            seen.append(seen[parent] | 1 << node)
        width = n + 7 >> 3
        packed = np.frombuffer(b"".join([row.to_bytes(width, "little") for row in seen]), np.uint8)
        return np.unpackbits(packed.reshape(n, width), axis=1, count=n, bitorder="little").view(np.bool_)

    def prune(self, keep: Sequence[int] | npt.NDArray[np.bool_]) -> TokenTree:
        """Only the kept nodes (a bool[N] or node indices; the root always stays, orphans go).

        Where a drawn child is lost its siblings were not sampled from the law any more: they become picks.
        That alone keeps sampling exact only if the choice does not depend on drawn values: a law that stays
        because a draw was liked is not the law of what is left.
        """
        chosen = np.asarray(keep)
        kept = set(np.flatnonzero(chosen).tolist() if chosen.dtype == np.bool_ else chosen.tolist())
        parents, draw = self.parents.tolist(), self.draw.tolist()
        place: dict[int, int] = {0: 0}
        lost: set[int] = set()
        for node in range(1, len(parents)):
            if node in kept and parents[node] in place:
                place[node] = len(place)
            elif draw[node] >= 0:
                lost.add(parents[node])
        old = list(place)
        return TokenTree(
            self.tokens[old],
            np.array([-1] + [place[parents[i]] for i in old[1:]], np.int32),
            np.array([-1 if parents[i] in lost else draw[i] for i in old], np.int32),
            tuple([self.sources[i] for i in old]),
            {place[n]: law for n, law in self.dists.items() if n in place and n not in lost},
            tuple([self.scores[i] for i in old]) if self.scores else (),
        )

    def merge(self, other: TokenTree) -> TokenTree:
        """Both trees as one; a node that both propose stands once, under this tree's source.

        A law of either tree stays with all its drawn children, the rest become picks beside them; where both
        trees sampled the children of one node this tree's law stays. Raises ValueError when the roots differ.
        """
        if int(self.tokens[0]) != int(other.tokens[0]):
            raise ValueError("trees of different roots cannot be merged")
        tokens, parents = self.tokens.tolist(), self.parents.tolist()
        draw, sources, dists = self.draw.tolist(), list(self.sources), dict(self.dists)
        scored = bool(self.scores or other.scores)
        scores = list(self.scores or [0.0] * len(tokens))
        index = {(p, t): i for i, (p, t) in reversed(list(enumerate(zip(parents, tokens, strict=True))))}
        theirs = zip(other.tokens.tolist(), other.parents.tolist(), other.draw.tolist(), strict=True)
        place: list[int] = []
        sampled: set[int] = set()  # nodes of `other` whose law is kept
        for node, (token, old, order) in enumerate(theirs):
            parent = place[old] if node else -1
            order = order if old in sampled else -1
            at = index.get((parent, token))
            if at is not None and order >= 0 and draw[at] >= 0:
                at = None  # the same token drawn twice: two draws, two nodes
            if at is None:
                at = len(tokens)
                tokens.append(token)
                parents.append(parent)
                draw.append(order)
                sources.append(other.sources[node])
                scores.append(other.scores[node] if other.scores else 0.0)
                index.setdefault((parent, token), at)
            elif order >= 0:
                draw[at] = order
            place.append(at)
            if node in other.dists and at not in dists:
                sampled.add(node)
                dists[at] = other.dists[node]
        return TokenTree(
            np.array(tokens, np.int64),
            np.array(parents, np.int32),
            np.array(draw, np.int32),
            tuple(sources),
            dists,
            tuple(scores) if scored else (),
        )
