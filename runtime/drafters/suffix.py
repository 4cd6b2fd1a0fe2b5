"""Drafting from the statistics of everything said so far, in this session and, from a file, in earlier ones.

After SuffixDecoding (arXiv 2411.04975): trees grown best first by counts of what followed a matching suffix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Protocol

from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.drafters.automaton import SuffixAutomaton
from paceline.runtime.drafters.history import follow
from paceline.runtime.drafters.store import Contexts, SuffixStore
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree

TOKEN_BYTES = 800
"""Of the automaton, for each token of the text, at most."""
_LONGEST = 16
"""Longest context that is matched."""
_DEPTH = 32
"""Longest string that is counted: a context and the path drafted from it."""
_WIDE = 48
"""Contexts with more different successors than this say little and cost time: they are passed over."""
_LEAST = 0.02
"""Nodes less probable than this are left out, however cheap."""
_ENOUGH = 64
"""Places of the store that one search takes."""


class Cursor(Protocol):
    """A context in some text, and what it says about the next token."""

    def successors(self, least: float) -> list[tuple[float, int, Cursor]]:
        """(probability, token, context that ends with it) of those that are at least so probable."""


class Suffix:
    """Grows the most probable tree under the counts of the text so far and of the store, if there is one.

    A node is worth its path's probability, and nodes below `worth` are left out, so the tree grows with the
    length of the match and with the evidence for it. Prompt and output count alike.
    """

    name = "suffix"
    needs: frozenset[str] = frozenset()

    def __init__(self, store: SuffixStore | None = None, worth: float = 0.15, capacity: int = 16_384) -> None:
        if capacity < 4:
            raise ValueError(f"a suffix automaton of {capacity} tokens finds nothing: use 4 or more")
        self._store, self._worth, self._capacity = store, worth, capacity
        self._text = SuffixAutomaton(_DEPTH)
        self._asked: list[int] = []
        self._said: list[int] = []  # the committed sequence, for the store
        self._searched = True

    def footprint(self, limit: DraftLimit) -> int:
        """The automaton of `capacity` tokens, and the store."""
        return TOKEN_BYTES * self._capacity + (self._store.nbytes if self._store else 0)

    def begin(self, request: Request) -> None:
        """What was said until now goes to the store, which is not asked where the output depends on what is drafted."""
        self._remember()
        self._searched = not request.draft_dependent

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """The most probable nodes, best first; one node where the last token is new."""
        text = self._text
        follow(text, tokens, self._capacity)
        if self._store is not None:
            self._asked = list(tokens)
        cursors: list[Cursor] = []
        state, length = text.seen_before(_LONGEST)
        if length:
            cursors.append(_InText(text, state, length))
        if self._store is not None and self._searched:
            contexts = self._store.contexts()
            places, length = contexts.find(tokens, _LONGEST, _ENOUGH)
            if length:
                cursors.append(_InStore(contexts, places, length))
        return grow(tokens[-1], cursors, limit, self._worth, self.name)

    def observe(self, outcome: Outcome) -> None:
        """The automaton follows `tokens`; the accepted tokens are noted for the store."""
        if self._store is not None and len(outcome.scored.logits):
            self._said = self._asked + outcome.tree.tokens[list(outcome.verdict.path[1:])].tolist()

    def reset(self) -> None:
        """Forget the text, which goes to the store."""
        self._remember()
        self._asked, self._said = [], []
        self._text.clear()

    def _remember(self) -> None:
        if self._store is not None and self._said:
            self._store.remember(self._said)


def grow(root: int, cursors: Sequence[Cursor], limit: DraftLimit, worth: float, source: str) -> TokenTree:
    """The most probable nodes of several texts; a node of two is as probable as the better one says."""
    if not cursors or min(limit.nodes, limit.depth) <= 0:
        return TokenTree.root(root)
    tokens, parents, depths = [root], [-1], [0]
    at: dict[tuple[int, int], int] = {}
    frontier: list[
        tuple[float, int, int, int, Cursor]
    ] = []  # -score, serial number, parent, token, its context
    grown: list[tuple[int, float, Cursor]] = [(0, 1.0, cursor) for cursor in cursors]
    serial = 0
    worth = _LEAST if limit.priced else worth
    while True:
        for node, score, cursor in grown:
            for probability, token, context in cursor.successors(worth / score):
                serial += 1
                heappush(frontier, (-score * probability, serial, node, token, context))
        if not frontier:
            break
        less, _, parent, token, context = heappop(frontier)
        key = (parent, token)
        if key not in at:
            if len(tokens) > limit.nodes or -less < limit.price(len(tokens)):
                break
            at[key] = len(tokens)
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
        grown = [(at[key], -less, context)] if depths[at[key]] < limit.depth else []
    return TokenTree.picked(tokens, parents, ("", *(source,) * (len(tokens) - 1)))


def share(count: int, total: int, distinct: int, length: int) -> float:
    """How probable a successor is that followed `count` of `total` times, among `distinct` different ones.

    Evidence (total / distinct)^2 stands against an escape weight of 3 / length^1.2, a fit to four kinds of
    text: encyclopedia, code, sampled stories, a small model's greedy stories.
    """
    evidence = (total / distinct) ** 2
    return count / total * evidence / (evidence + _ESCAPE[length])


_ESCAPE = [0.0, *(3 / math.pow(length, 1.2) for length in range(1, _DEPTH + 1))]


class _InText:
    """The last `length` tokens of a state of the automaton, and shorter ones for what those miss."""

    __slots__ = ("_length", "_state", "_text")

    def __init__(self, text: SuffixAutomaton, state: int, length: int) -> None:
        self._text, self._state, self._length = text, state, length

    def successors(self, least: float) -> list[tuple[float, int, Cursor]]:
        text, state, length = self._text, self._state, self._length
        if length >= _DEPTH:
            return []
        count = text.count
        found: list[tuple[float, int, Cursor]] = []
        seen: set[int] = set()
        left = 1.0
        while state > 0 and left >= least:
            following = text.next[state]
            if 0 < len(following) <= _WIDE:
                fresh = (
                    [(t, s) for t, s in following.items() if t not in seen]
                    if seen
                    else list(following.items())
                )
                total = sum([count[s] for _, s in fresh])
                for token, after in reversed(fresh):
                    probability = left * share(count[after], total, len(fresh), length)
                    if probability >= least:
                        found.append((probability, token, _InText(text, after, length + 1)))
                if fresh:
                    left *= 1.0 - share(total, total, len(fresh), length)
                    seen.update(following)
            state = text.link[state]
            length = text.length[state]
        return found


class _InStore:
    """Places of the store that end with the same `length` tokens."""

    __slots__ = ("_contexts", "_length", "_places")

    def __init__(self, contexts: Contexts, places: list[int], length: int) -> None:
        self._contexts, self._places, self._length = contexts, places, length

    def successors(self, least: float) -> list[tuple[float, int, Cursor]]:
        following: dict[int, list[int]] = {}
        for place in self._places:
            token = self._contexts.after(place)
            if token is not None:
                following.setdefault(token, []).append(place + 1)
        total = sum([len(places) for places in following.values()])
        found: list[tuple[float, int, Cursor]] = []
        length = min(self._length, _DEPTH)
        for token, places in following.items():
            probability = share(len(places), total, len(following), length)
            if probability >= least:
                found.append((probability, token, _InStore(self._contexts, places, length + 1)))
        return found
