"""Every substring of a text and how often it occurs, taken in token by token and given back the same way.

The online suffix automaton of Blumer et al. (1985). Each state stands for substrings that end at the same
positions; its link leads to the longest suffix that ends at more of them.
"""

from __future__ import annotations


class SuffixAutomaton:
    """Counts are exact for substrings of up to `depth` tokens and mean nothing for longer ones.

    push and pop cost O(1) amortised and at most `depth` steps to count. At most two states a token.
    """

    def __init__(self, depth: int = 32) -> None:
        self.depth = depth
        self.clear()

    def clear(self) -> None:
        """Hold the empty text: one state, number 0."""
        self.tokens: list[int] = []
        self.next: list[dict[int, int]] = [{}]
        self.link: list[int] = [-1]
        self.length: list[int] = [0]
        self.count: list[int] = [0]
        self._last = 0
        self._short = 0  # the state of the last min(depth, n) tokens
        self._undo: list[tuple[int, int, int, int]] = []  # last, short, copied state or -1, its copy or -1

    def push(self, token: int) -> None:
        """Take in one more token."""
        following, link, length = self.next, self.link, self.length
        at = before = self._last
        self._last = new = self._state({}, length[before] + 1, 0, 0)
        while at >= 0 and token not in following[at]:
            following[at][token] = new
            at = link[at]
        copied = copy = -1
        if at >= 0:
            target = following[at][token]
            if length[target] == length[at] + 1:
                link[new] = target
            else:
                copied = target
                copy = self._state(dict(following[target]), length[at] + 1, link[target], self.count[target])
                while at >= 0 and following[at].get(token) == target:
                    following[at][token] = copy
                    at = link[at]
                link[target] = link[new] = copy
        self._undo.append((before, self._short, copied, copy))
        kept = min(len(self.tokens), self.depth - 1)
        self._short = self.suffix(following[self.suffix(self._short, kept)][token], kept + 1)
        self.tokens.append(token)
        self._count(1)

    def pop(self) -> None:
        """Undo the last push."""
        following, link, new = self.next, self.link, self._last
        self._count(-1)
        token = self.tokens.pop()
        before, self._short, copied, copy = self._undo.pop()
        if copy >= 0:
            link[copied] = link[copy]
        at = before
        while at >= 0 and following[at].get(token) == new:
            del following[at][token]
            at = link[at]
        while copy >= 0 and at >= 0 and following[at].get(token) == copy:
            following[at][token] = copied
            at = link[at]
        for states in (following, link, self.length, self.count):
            del states[new:]
        self._last = before

    def suffix(self, state: int, length: int) -> int:
        """The state of the last `length` tokens of what `state` stands for."""
        link, lengths = self.link, self.length
        while state > 0 and lengths[link[state]] >= length:
            state = link[state]
        return state

    def seen_before(self, longest: int) -> tuple[int, int]:
        """State and length of the longest suffix, up to `longest`, that also occurs earlier in the text."""
        longest = min(longest, self.depth, len(self.tokens))
        state = self.suffix(self._short, longest)
        if self.count[state] > 1:
            return state, min(longest, self.length[state])
        state = max(self.link[state], 0)
        return state, self.length[state]

    def _state(self, following: dict[int, int], length: int, link: int, count: int) -> int:
        self.next.append(following)
        self.length.append(length)
        self.link.append(link)
        self.count.append(count)
        return len(self.link) - 1

    def _count(self, step: int) -> None:
        """Every suffix of up to `depth` tokens occurs once more (or once less)."""
        state, link, count = self._short, self.link, self.count
        while state > 0:
            count[state] += step
            state = link[state]
