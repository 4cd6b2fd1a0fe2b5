"""A tree of drafted tokens: its root is the last chosen token, every path from it is one possible future."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from paceline.runtime.law import Law

Ids = npt.NDArray[np.int64]
Links = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Node 0 is the last chosen token, not yet in the target's cache; parents precede their children.

    tokens: int64[N]. parents: int32[N], `parents[0] == -1`.
    dists: node -> the law its children were SAMPLED from; a node that is absent had its children picked.
    draw: int32[N], the order in which a node was drawn from its parent's law; -1 for the root and for picks.
    sources: who proposed each node; the root's is "".
    """

    tokens: Ids
    parents: Links
    draw: Links
    sources: tuple[str, ...]
    dists: Mapping[int, Law] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sources)

    @classmethod
    def root(cls, token: int) -> TokenTree:
        """The tree of plain decoding: nothing drafted."""
        return cls(np.array([token], np.int64), _ROOT, _ROOT, ("",))

    @classmethod
    def chain(
        cls, tokens: Sequence[int] | Ids, source: str = "", dists: Mapping[int, Law] | None = None
    ) -> TokenTree:
        """`tokens[0]` is the root, each further token the only child of the one before.

        With `dists` (node -> law) the child of that node was sampled from it.
        """
        n = len(tokens)
        draw = np.full(n, -1, np.int32)
        for node in dists or ():
            draw[node + 1] = 0
        return cls(
            np.asarray(tokens, np.int64),
            np.arange(-1, n - 1, dtype=np.int32),
            draw,
            ("", *(source,) * (n - 1)),
            dists or {},
        )

    @classmethod
    def picked(cls, tokens: Sequence[int], parents: Sequence[int], sources: Sequence[str]) -> TokenTree:
        """A tree whose nodes were all picked, none sampled."""
        n = len(tokens)
        return cls(
            np.asarray(tokens, np.int64), np.asarray(parents, np.int32), np.full(n, -1, np.int32), tuple(sources)
        )

    def children(self, node: int) -> list[int]:
        """Nodes whose parent is `node`: drawn ones first, in the order they were drawn, then the picks."""
        found = np.flatnonzero(self.parents == node).tolist()
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
        depths = np.zeros(len(self), np.int64)
        parents = self.parents
        for node in range(1, len(depths)):
            depths[node] = depths[parents[node]] + 1
        return depths

    def is_chain(self) -> bool:
        """Whether every node is the only child of the node before it."""
        return bool((self.parents == np.arange(-1, len(self) - 1)).all())

    def mask(self) -> npt.NDArray[np.bool_]:
        """bool[N, N]: row i is true at its ancestors and at i itself."""
        n = len(self)
        if self.is_chain():
            return np.tri(n, dtype=np.bool_)
        mask = np.eye(n, dtype=np.bool_)
        parents = self.parents
        for node in range(1, n):
            mask[node] |= mask[parents[node]]
        return mask

    def prune(self, keep: Sequence[int] | npt.NDArray[np.bool_]) -> TokenTree:
        """Only the kept nodes (a bool[N] or node indices; the root always stays, orphans go).

        Where a drawn child is lost its siblings were not sampled from the law any more: they become picks.
        """
        wanted = np.zeros(len(self), np.bool_)
        wanted[np.asarray(keep)] = True
        wanted[0] = True
        for node in range(1, len(self)):
            wanted[node] &= wanted[self.parents[node]]
        lost = {int(self.parents[n]) for n in np.flatnonzero(~wanted & (self.draw >= 0))}
        new_of_old = np.cumsum(wanted, dtype=np.int32) - 1
        old = np.flatnonzero(wanted)
        parents = self.parents[old]
        draw = np.where(np.isin(parents, list(lost)), np.int32(-1), self.draw[old]).astype(np.int32)
        links = np.where(parents < 0, np.int32(-1), new_of_old[parents]).astype(np.int32)
        dists = {int(new_of_old[n]): d for n, d in self.dists.items() if wanted[n] and n not in lost}
        return TokenTree(self.tokens[old], links, draw, tuple(self.sources[i] for i in old), dists)

    def merge(self, other: TokenTree) -> TokenTree:
        """Both trees as one; a node that both propose stands once, under this tree's source.

        A law of this tree stays: its children stay drawn and the other's become picks beside them. Nodes that
        come from `other` keep their law only below a node that this tree lacks.
        """
        if int(self.tokens[0]) != int(other.tokens[0]):
            raise ValueError("trees of different roots cannot be merged")
        index = {(int(p), int(t)): i for i, (p, t) in enumerate(zip(self.parents, self.tokens, strict=True))}
        tokens, parents = self.tokens.tolist(), self.parents.tolist()
        draw, sources, dists = self.draw.tolist(), list(self.sources), dict(self.dists)
        own = len(tokens)
        place = [0]
        for node in range(1, len(other)):
            parent, token = place[int(other.parents[node])], int(other.tokens[node])
            drawn = int(other.draw[node]) if parent >= own else -1
            at = index.get((parent, token)) if drawn < 0 else None
            if at is None:
                at = len(tokens)
                tokens.append(token)
                parents.append(parent)
                draw.append(drawn)
                sources.append(other.sources[node])
                index.setdefault((parent, token), at)
            place.append(at)
        for node, law in other.dists.items():
            if place[node] >= own:
                dists[place[node]] = law
        return TokenTree(
            np.array(tokens, np.int64), np.array(parents, np.int32), np.array(draw, np.int32), tuple(sources), dists
        )


_ROOT = np.array([-1], np.int32)
