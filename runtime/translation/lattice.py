"""From what a draft model proposes, in its own tokens, to a tree of the target's: every reading of it is a branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paceline.runtime.contracts import DraftLimit
from paceline.runtime.law import Law
from paceline.runtime.request import Request
from paceline.runtime.translation.ngrams import ROOT, NgramCache, Trie
from paceline.runtime.translation.sides import Sides
from paceline.runtime.tree import TokenTree

_READINGS = 2
"""Ways to read the same pieces that are gone on with, the likeliest ones."""
UNKNOWN = 0.5
"""Chance of a token whose drafter says nothing."""
_FIRST, _STRENGTH, _FADE = 0.8, 8.0, 256.0
"""How often the longer of two readings is thought to be the target's at first, how many observations that counts as,
and after how many older ones fade."""


@dataclass(frozen=True, slots=True)
class Translated:
    """A tree of target tokens, and for each of its nodes the draft node at which its text ends, -1 for half of one.

    longer: nodes beside which the same pieces were read as one longer token, with that token's node.
    """

    tree: TokenTree
    ends: tuple[int, ...]
    longer: tuple[tuple[int, int], ...] = ()


class Lattice:
    """Reads drafted pieces as target tokens: one for one, merged by the n-gram cache, or split.

    Where pieces "fl", "ake" can be read as "fl" and as "flake", both are children of one node, so a wrong cut costs a
    node and no token. What is drawn stays drawn: a piece that has a counterpart is a draw from the draft law given that
    it has one; all other readings are picks beside it (mode B of docs/omnidraft.md).
    """

    def __init__(self, sides: Sides, ngrams: NgramCache | None) -> None:
        """ngrams: None reads tokens one for one, and neither merges nor splits them."""
        self._sides, self.ngrams = sides, ngrams
        self._blocks = False
        self._taken = [_FIRST * _STRENGTH, _STRENGTH]

    def begin(self, request: Request) -> None:
        """An answer begins. Where it depends on what is drafted nothing counts that was learnt before.

        The rule `block` judges a whole chain of draws at once: what is drawn below a merged token was then looked at
        where its pieces stand alone, and is no draw any more.
        """
        self._blocks = request.accept == "block"
        if request.draft_dependent:
            self._taken = [_FIRST * _STRENGTH, _STRENGTH]

    @property
    def preference(self) -> float:
        """How often the longer of two readings was the target's, where one of them was."""
        return self._taken[0] / self._taken[1]

    def prefer(self, longer: bool) -> None:
        """The target read pieces as one longer token, or piece by piece."""
        if self._taken[1] > _FADE:
            self._taken = [count / 2 for count in self._taken]
        self._taken[0] += longer
        self._taken[1] += 1

    def translate(self, tokens: Sequence[int], draft: TokenTree, limit: DraftLimit) -> Translated:
        """The tree of target tokens behind a text, at most as large as the limit, no pick worth less than its price."""
        grown = _Grown(tokens[-1])
        trie = Trie() if self.ngrams is None else self.ngrams.trie
        parents, pieces = draft.parents.tolist(), draft.tokens.tolist()
        arrivals: list[list[int]] = [[0], *([] for _ in parents[1:])]
        walks: list[list[tuple[int, int, int, float]]] = [[] for _ in parents]
        for node in range(1, len(parents)):
            above, piece = parents[node], pieces[node]
            score = draft.scores[node] if draft.scores else UNKNOWN
            on = [
                (start, first, step, odds * score)
                for start, first, at, odds in walks[above]
                if (step := trie.step(at, piece))
            ]
            for start, first, at, odds in on:
                if (token := trie.ends[at]) >= 0:
                    for place in arrivals[start]:
                        grown.merged(place, token, odds, node, first)
            if arrivals[above]:
                if step := trie.step(ROOT, piece):
                    on.append((above, node, step, score))
                drawn = self._drawn(draft, above, node)
                for place in arrivals[above]:
                    law = drawn if grown.alone(place) or not self._blocks else None
                    self._read_alone(grown, place, piece, score, node, law)
            walks[node] = on
            arrivals[node] = grown.likeliest(node, _READINGS)
        return grown.finish(limit, self.preference, draft.sources[1])

    def _read_alone(
        self, grown: _Grown, place: int, piece: int, score: float, node: int, drawn: Law | None
    ) -> None:
        """A piece as the token that it is, or as the tokens that spell it."""
        token = self._sides.to_target[piece] if piece < len(self._sides.to_target) else -1
        if token >= 0:
            grown.single(place, token, score, node, drawn)
            return
        spelled = () if self.ngrams is None else self._sides.splits(piece)
        for at, one in enumerate(spelled, 1):
            last = at == len(spelled)
            place = grown.add(place, one, score if at == 1 else 1.0, node if last else -1, node)

    def _drawn(self, draft: TokenTree, above: int, node: int) -> Law | None:
        """The law that the target's token was drawn from, if it was drawn: the draft's, given that it has one."""
        law = draft.dists.get(above)
        if law is None or draft.draw[node] < 0:
            return None
        return over_target(law, self._sides.mapping.to_target)


def over_target(law: Law, to_target: np.ndarray) -> Law | None:
    """A law of draft tokens as one of target tokens, given that the token has a counterpart; None where none has."""
    ids = to_target[law.ids]
    known = ids >= 0
    if not known.any():
        return None
    ids, probs = ids[known].astype(np.int64), law.probs[known]
    order = np.argsort(ids, kind="stable")
    ids, probs = ids[order], probs[order]
    firsts = np.flatnonzero(np.diff(ids, prepend=-1))
    probs = np.add.reduceat(probs, firsts)
    return Law(ids[firsts], probs / probs.sum())


class _Grown:
    """The target's tree as it grows: per node token, parent, chance given its parent, and where its text ends."""

    def __init__(self, root: int) -> None:
        self._tokens, self._parents, self._scores, self._ends = [root], [-1], [1.0], [0]
        self._whole, self._piece = [1.0], [0]
        self._at: dict[tuple[int, int], int] = {}
        self._laws: dict[int, Law] = {}
        self._draws: set[int] = set()
        self._by_end: dict[int, list[int]] = {}
        self._longer: dict[tuple[int, int], None] = {}
        self._alone: dict[tuple[int, int], int] = {}
        self._joined: set[int] = set()

    def alone(self, node: int) -> bool:
        """Whether no piece on the way to a node was merged with others."""
        return node not in self._joined

    def add(self, parent: int, token: int, score: float, end: int, piece: int = 0) -> int:
        """A child of a node, or the one that there is. piece: the draft node where its text ends, or would."""
        if (known := self._at.get((parent, token))) is not None:
            return known
        node = self._at[parent, token] = len(self._tokens)
        if parent in self._joined:
            self._joined.add(node)
        self._tokens.append(token)
        self._parents.append(parent)
        self._scores.append(score)
        self._whole.append(self._whole[parent] * score)
        self._ends.append(end)
        self._piece.append(piece or end)
        if end >= 0:
            self._by_end.setdefault(end, []).append(node)
        return node

    def single(self, parent: int, token: int, score: float, end: int, law: Law | None) -> None:
        """A piece that is a token of the target, drawn from `law` if there is one."""
        node = self.add(parent, token, score, end)
        self._alone[parent, end] = node
        if law is not None:
            self._laws[parent] = law
            self._draws.add(node)

    def merged(self, parent: int, token: int, score: float, end: int, first: int) -> None:
        """Pieces from draft node `first` to `end` as one token, which the first of them could be, too."""
        new = (parent, token) not in self._at
        node = self.add(parent, token, score, end)
        if new:
            self._joined.add(node)
        if (alone := self._alone.get((parent, first))) is not None:
            self._longer[alone, node] = None

    def likeliest(self, end: int, count: int) -> list[int]:
        """The best readings of all pieces up to a draft node."""
        found = self._by_end.get(end, [])
        return found if len(found) <= count else sorted(found, key=lambda n: -self._whole[n])[:count]

    def finish(self, limit: DraftLimit, preference: float, source: str) -> Translated:
        """The draws, then the best picks that are worth their price, within the limit."""
        for node in {longer for _, longer in self._longer}:
            self._scores[node] *= preference
        for node in {shorter for shorter, _ in self._longer}:
            self._scores[node] *= 1 - preference
        whole, depths = [1.0], [0]
        for node in range(1, len(self._tokens)):
            parent = self._parents[node]
            whole.append(whole[parent] * self._scores[node])
            depths.append(depths[parent] + 1)
        keep = self._kept_draws(limit, depths) if self._draws else self._kept(limit, whole, depths)
        place = {node: at for at, node in enumerate(keep)}
        sampled = {self._parents[node] for node in self._draws if node in place}
        tree = TokenTree(
            np.array([self._tokens[n] for n in keep], np.int64),
            np.array([-1, *(place[self._parents[n]] for n in keep[1:])], np.int32),
            np.array([0 if n in self._draws else -1 for n in keep], np.int32),
            ("", *(source for _ in keep[1:])),
            {place[n]: law for n, law in self._laws.items() if n in sampled},
            tuple([min(self._scores[n], 1.0) for n in keep]),
        )
        longer = tuple([(place[a], place[b]) for a, b in self._longer if a in place and b in place])
        return Translated(tree, tuple([self._ends[n] for n in keep]), longer)

    def _kept(self, limit: DraftLimit, whole: list[float], depths: list[int]) -> list[int]:
        """The best nodes that are worth their price, in order."""
        keep = {0}
        for node in sorted(range(1, len(whole)), key=lambda n: (-whole[n], n)):
            if len(keep) > limit.nodes or whole[node] < limit.price(len(keep)):
                break
            if self._parents[node] in keep and depths[node] <= limit.depth:
                keep.add(node)
        return sorted(keep)

    def _kept_draws(self, limit: DraftLimit, depths: list[int]) -> list[int]:
        """The same where something was drawn: piece by piece, the draws first.

        Whether a draw stays may depend on what was drawn above it, never on its own value or on what follows from
        that: so neither later pieces nor scores that they changed are looked at.
        """
        keep = {0}
        by_piece = sorted(range(1, len(self._ends)), key=lambda n: (self._piece[n], n not in self._draws, n))
        for node in by_piece:
            if len(keep) > limit.nodes:
                break
            worth = node in self._draws or self._whole[node] >= limit.price(len(keep))
            if worth and self._parents[node] in keep and depths[node] <= limit.depth:
                keep.add(node)
        return sorted(keep)
