"""Target tokens that several draft tokens spell, learnt from verified text: the n-gram cache of OmniDraft.

A trie over draft tokens, whose nodes may end a target token (2507.02659, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from threading import Lock

NGRAM_BYTES = 4_000_000
"""Of a cache, unless told otherwise."""
ROOT = 0
_SHIFT = 32
ENTRY_BYTES = 240
"""A target token with its run: an entry of a table, a tuple, a key."""
EDGE_BYTES = 150
"""A node of the trie: two numbers, an entry of a table, a place in a list."""
_KEPT = 0.75
"""Share of the budget that the entries used last may keep when it is full."""


class NgramCache:
    """At most `most_bytes` of runs, those used longest ago go first. Sessions in several threads may share one.

    The trie is replaced, never shortened in place, so whoever walks it holds on to `trie`.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._runs: dict[int, tuple[int, ...]] = {}
        self.trie = Trie()
        self._unused: set[int] = set()
        self.fresh = 0
        """Runs that were learnt since they were saved."""
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def nbytes(self) -> int:
        """Bytes in memory at most."""
        return len(self._runs) * ENTRY_BYTES + len(self.trie) * EDGE_BYTES

    def run_of(self, target: int) -> tuple[int, ...] | None:
        """The draft tokens that spell a target token, None where it was not learnt."""
        return self._runs.get(target)

    def learn(self, target: int, run: Sequence[int]) -> None:
        """A target token of the text, and the two or more draft tokens that spell it; it counts as used last."""
        with self._lock:
            self.fresh += target not in self._runs or target in self._unused
            self._unused.discard(target)
            self._take(target, run)

    def suppose(self, target: int, run: Sequence[int]) -> None:
        """The same of a token that may be used."""
        with self._lock:
            if target not in self._runs:
                self._unused.add(target)
                self._take(target, run)

    def _take(self, target: int, run: Sequence[int]) -> None:
        known = self._runs.pop(target, None)
        if known is None:
            known = tuple(run)
            self.trie.add(known, target)
        self._runs[target] = known
        if self.nbytes > self.most_bytes:
            self._forget()

    def _forget(self) -> None:
        """Keep what was used last, in a trie of its own."""
        trie, kept = Trie(), dict[int, tuple[int, ...]]()
        for target, run in reversed(self._runs.items()):
            size = (len(kept) + 1) * ENTRY_BYTES + (len(trie) + len(run)) * EDGE_BYTES
            if size > _KEPT * self.most_bytes:
                break
            kept[target] = run
            trie.add(run, target)
        self._runs = dict(reversed(kept.items()))
        self._unused &= kept.keys()
        self.trie = trie

    def entries(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Target tokens that were used, and their runs, those used longest ago first."""
        with self._lock:
            return iter([entry for entry in self._runs.items() if entry[0] not in self._unused])

    def fill(self, entries: Iterable[tuple[int, tuple[int, ...]]]) -> None:
        """Take in what was learnt before, which is saved already."""
        before = self.fresh
        for target, run in entries:
            self.learn(target, run)
        self.fresh = before


class Trie:
    """Runs of draft tokens. A node is a number, `ROOT` the beginning; `ends` has the target token of a node or -1."""

    __slots__ = ("_next", "ends")

    def __init__(self) -> None:
        self._next: dict[int, int] = {}
        self.ends = [-1]

    def __len__(self) -> int:
        return len(self._next)

    def step(self, node: int, token: int) -> int:
        """The node behind a draft token, 0 where no run goes on with it."""
        return self._next.get(node << _SHIFT | token, 0)

    def add(self, run: Sequence[int], target: int) -> None:
        """End a run of draft tokens with a target token."""
        node = ROOT
        for token in run:
            key = node << _SHIFT | token
            after = self._next.get(key, 0)
            if not after:
                after = len(self.ends)
                self.ends.append(-1)
                self._next[key] = after
            node = after
        self.ends[node] = target
