"""Prompt lookup: what followed the last few tokens when they stood in the text before."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.drafters.draw import Acceptance
from paceline.runtime.drafters.history import follow
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree

TOKEN_BYTES = 180
"""Of the index, for each token of the text, at most."""
_LONGEST = 12
"""Matches are not told apart beyond this many tokens."""
_LEAST = 0.02
"""Nodes less likely than this are left out, however cheap."""
_ATTEMPTS = 24
"""Earlier places that are looked at, the latest first."""


class PromptLookup:
    """Copies what followed earlier occurrences of the last tokens: the longest match first, then the latest.

    A match of m tokens is trusted with the probability `trust(m)`, and with a longer one for every copied
    token, both as they came true so far; nodes below their price are left out, or below `worth` where nothing is
    known of prices. Other continuations become branches.
    A match has at least two tokens. O(1) a token in time, about 170 bytes a token in memory.
    """

    name = "lookup"
    needs: frozenset[str] = frozenset()

    def __init__(self, worth: float = 0.15, capacity: int = 65_536) -> None:
        if capacity < 4:
            raise ValueError(f"a lookup over {capacity} tokens finds nothing: use 4 or more")
        self._worth, self._capacity = worth, capacity
        self._index = PairIndex()
        self._acceptance: Acceptance | None = None
        self._learnt = Acceptance()

    def footprint(self, limit: DraftLimit) -> int:
        """The index of `capacity` tokens."""
        return TOKEN_BYTES * self._capacity

    def begin(self, request: Request) -> None:
        """Trust is corrected by what was accepted, but where the output depends on what is drafted."""
        self._acceptance = None if request.draft_dependent else self._learnt

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """The best continuations found; one node where there is none."""
        follow(self._index, tokens, self._capacity)
        if min(limit.nodes, limit.depth) <= 0:
            return TokenTree.root(tokens[-1])
        found = self._index.matches(_LONGEST, _ATTEMPTS)
        if not found:
            return TokenTree.root(tokens[-1])
        first, scores = self._copy(*found[0], limit, min(limit.nodes, limit.depth), 1.0, 0)
        if len(found) == 1 or len(first) >= limit.nodes:
            return TokenTree.chain([tokens[-1], *first], self.name, scores=[1.0, *scores])
        return self._branches(tokens[-1], found, limit)

    def observe(self, outcome: Outcome) -> None:
        """How far its trust was justified; the index follows `tokens`."""
        if self._acceptance is not None:
            self._acceptance.learn(outcome, self.name)

    def reset(self) -> None:
        """Forget the text."""
        self._index.clear()

    def _copy(
        self, length: int, place: int, limit: DraftLimit, depth: int, chance: float, beside: int
    ) -> tuple[list[int], list[float]]:
        """Up to `depth` tokens from `place` on, and their trust; past the end of the text the copy copies itself.

        beside: nodes that the tree has already.
        """
        text, known = self._index.tokens, self._acceptance
        copied: list[int] = []
        scores: list[float] = []
        period = len(text) - place
        for step in range(depth):
            score = trust(length + step)
            chance *= score if known is None else known.chance(step + 1, score)
            if chance < (max(limit.price(beside + step + 1), _LEAST) if limit.priced else self._worth):
                break
            copied.append(text[place + step] if step < period else copied[step - period])
            scores.append(score)
        return copied, scores

    def _branches(self, root: int, found: list[tuple[int, int]], limit: DraftLimit) -> TokenTree:
        """Continuations side by side; each branch shares what chance the ones before it left."""
        tokens, parents, scores = [root], [-1], [1.0]
        at: dict[tuple[int, int], int] = {}
        left = 1.0
        for length, place in found:
            node = 0
            for token, score in zip(
                *self._copy(length, place, limit, limit.depth, left, len(tokens) - 1), strict=True
            ):
                key = (node, token)
                node = at.get(key, -1)
                if node < 0:
                    if len(tokens) > limit.nodes:
                        break
                    node = at[key] = len(tokens)
                    tokens.append(token)
                    parents.append(key[0])
                    # Only of the first branch the trust is that of the token alone.
                    scores.append(score if left == 1.0 else 0.0)
            left *= 1.0 - trust(length)
            if left < (_LEAST if limit.priced else self._worth) or len(tokens) > limit.nodes:
                break
        return TokenTree.picked(tokens, parents, ("", *(self.name,) * (len(tokens) - 1)), scores)


def trust(length: int) -> float:
    """How probable it is that the token which followed a match of `length` tokens follows again.

    A fit to four kinds of text: encyclopedia, code, sampled stories, a small model's greedy stories.
    """
    return _TRUST[min(length, _LONGEST)]


_TRUST = [0.0, *(1 / (1 + 3 / math.pow(length, 1.2)) for length in range(1, _LONGEST + 1))]


class PairIndex:
    """Where each pair of neighbours stood before: `_before[i]` is the place before i with the same two tokens
    in front of it, a chain as in a Lempel-Ziv matcher. Taking in a token is O(1), and so is giving it back.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Hold nothing."""
        self.tokens: list[int] = []
        self._before: list[int] = []  # of the pair that ends with token i
        self._latest: dict[tuple[int, int], int] = {}

    def push(self, token: int) -> None:
        """Take in one more token."""
        place = len(self.tokens)
        if place:
            pair = (self.tokens[-1], token)
            self._before.append(self._latest.get(pair, -1))
            self._latest[pair] = place
        else:
            self._before.append(-1)
        self.tokens.append(token)

    def pop(self) -> None:
        """Undo the last push."""
        token, before = self.tokens.pop(), self._before.pop()
        if not self.tokens:
            return
        pair = (self.tokens[-1], token)
        if before >= 0:
            self._latest[pair] = before
        else:
            del self._latest[pair]

    def matches(self, longest: int, attempts: int) -> list[tuple[int, int]]:
        """(length of the match, place of the token that followed it), the longest and then the latest first.

        Only the best place is listed for each token that followed; a match of `longest` tokens ends the search.
        """
        tokens, before = self.tokens, self._before
        end = len(tokens) - 1
        best: dict[int, tuple[int, int]] = {}
        place = before[end] if end > 0 else -1
        while place >= 0 and attempts:
            attempts -= 1
            length, limit = 2, min(longest, place + 1)
            while length < limit and tokens[place - length] == tokens[end - length]:
                length += 1
            after = tokens[place + 1]
            if after not in best or length > best[after][0]:
                best[after] = (length, place + 1)
                if length == longest:
                    break
            place = before[place]
        return sorted(best.values(), key=lambda match: (-match[0], -match[1]))
