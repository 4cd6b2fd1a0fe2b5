"""What a target looks at and says early, in the ids of a draft model of another vocabulary that drafts on beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Protocol

import numpy as np

from paceline.runtime.beside import Aside, Lent, Meanwhile, Tally, Work
from paceline.runtime.contracts import Early, Outcome
from paceline.runtime.request import Request
from paceline.runtime.timeline import Timeline
from paceline.runtime.translation.reading import Reading
from paceline.runtime.tree import TokenTree


class Chooser(Protocol):
    """Reads what the target says early as its rule will choose."""

    def begin(self, request: Request) -> None:
        """An answer begins."""

    def choose(self, tree: TokenTree, early: Early, text: Sequence[int]) -> Early:
        """What may be chosen after every node of a tree behind a text."""

    def observe(self, outcome: Outcome) -> None:
        """What was chosen."""


class Crossing:
    """Where a drafter of another vocabulary leaves its work: it sees the target's pass in its own ids.

    What the target says early is chosen from in the target's ids, with its penalties and its noise, and then spelled.
    """

    def __init__(self, beside: Aside, chooser: Chooser) -> None:
        self._beside, self._chooser = beside, chooser
        self._reading: Reading | None = None
        self._text: list[int] = []

    @property
    def tally(self) -> Tally:
        """See `Aside`."""
        return self._beside.tally

    @property
    def timeline(self) -> Timeline | None:
        """See `Aside`."""
        return self._beside.timeline

    def begin(self, request: Request) -> None:
        """An answer begins, as the target is asked."""
        self._chooser.begin(request)

    def start(self, tokens: Sequence[int], reading: Reading) -> None:
        """A proposal begins behind this text of the target, which is read already."""
        self._text, self._reading = list(tokens), reading

    def observe(self, outcome: Outcome) -> None:
        """What became of the proposal, in the target's ids."""
        self._chooser.observe(outcome)

    def later(self, work: Work, lent: Lent | None = None) -> None:
        """See `Aside`."""
        assert self._reading is not None
        across = partial(_Across, self._reading, partial(self._chosen, self._text))
        self._beside.later(lambda meanwhile: work(across(meanwhile)), lent)

    def _chosen(self, text: Sequence[int], tree: TokenTree, early: Early) -> Early:
        return self._chooser.choose(tree, early, text)


class _Across:
    """A pass of the target in the draft model's ids. Its tree has a node wherever a token of the target's tree ends,
    and, once something was said early, wherever what was said begins or goes on."""

    def __init__(
        self, reading: Reading, chosen: Callable[[TokenTree, Early], Early], meanwhile: Meanwhile
    ) -> None:
        self._chosen, self._meanwhile = chosen, meanwhile
        self._spelled = Spelled(reading, meanwhile.tree)

    @property
    def tree(self) -> TokenTree:
        """See `Meanwhile`."""
        return self._spelled.tree()

    @property
    def early(self) -> Early | None:
        """See `Meanwhile`."""
        return None if self._meanwhile.early is None else self._heard

    @cached_property
    def _heard(self) -> Early:
        early = self._meanwhile.early
        assert early is not None
        return self._spelled.hear(self._chosen(self._meanwhile.tree, early))

    def over(self) -> bool:
        """See `Meanwhile`."""
        return self._meanwhile.over()

    def left(self) -> float:
        """See `Meanwhile`."""
        return self._meanwhile.left()

    def wait(self) -> None:
        """See `Meanwhile`."""
        self._meanwhile.wait()


class Spelled:
    """A tree of target tokens as draft tokens spell it: what begins alike is one node.

    A draft node's mass is the chance that the text goes through it, as far as it is known.
    """

    def __init__(self, reading: Reading, tree: TokenTree) -> None:
        self._run_of, self._target = reading.run_of, tree
        self._tokens, self._parents = [reading.tokens[-1]], [-1]
        self._below: list[dict[int, int]] = [{}]
        self._mass, self._ended = [1.0], [0.0]
        self._places = [0]
        """By target node the draft node where its text ends."""
        parents = tree.parents.tolist()
        for node, token in enumerate(tree.tokens.tolist()[1:], 1):
            self._places.append(self._spell(self._places[parents[node]], token, 0.0))
        self._shown = sorted({*self._places, *self._inner()})

    def tree(self) -> TokenTree:
        """In draft tokens, whose root is the last one of the text."""
        at = {node: place for place, node in enumerate(self._shown)}
        parents = [at.get(self._parents[node], -1) for node in self._shown]
        tokens = [self._tokens[node] for node in self._shown]
        return TokenTree.picked(tokens, parents, [""] * len(tokens))

    def hear(self, named: Early) -> Early:
        """What was chosen behind the nodes of the target's tree, by node of `tree`, which has more from now on."""
        told = list(named.told())
        said, rest = [dict(chances) for chances, _ in told], [left for _, left in told]
        parents, tokens, reached = self._target.parents.tolist(), self._target.tokens.tolist(), [1.0]
        looked_at = set(zip(parents, tokens, strict=True))
        for node in range(1, len(parents)):
            above, token = parents[node], tokens[node]
            known = said[above].setdefault(token, rest[above])
            reached.append(reached[above] * known)
        for node, following in enumerate(said):
            self._ended[self._places[node]] += reached[node] * rest[node]
            for token, chance in following.items():
                end = self._spell(self._places[node], token, reached[node] * chance)
                if (node, token) not in looked_at:
                    self._ended[end] += reached[node] * chance
        self._shown = sorted({*self._places, *self._inner()})
        return self._named()

    def _spell(self, node: int, token: int, mass: float) -> int:
        """The draft node where a target token behind this one ends, which is made where there is none."""
        for piece in self._run_of(token):
            below = self._below[node]
            if piece not in below:
                below[piece] = len(self._tokens)
                self._tokens.append(piece)
                self._parents.append(node)
                self._below.append({})
                self._mass.append(0.0)
                self._ended.append(0.0)
            node = below[piece]
            self._mass[node] += mass
        return node

    def _inner(self) -> set[int]:
        return set(self._parents[1:])

    def _named(self) -> Early:
        widest = max((len(self._below[node]) for node in self._shown), default=0)
        ids = np.full((len(self._shown), widest), -1, np.int64)
        chances, rest = np.full(ids.shape, -np.inf, np.float32), np.ones(len(ids), np.float32)
        for at, node in enumerate(self._shown):
            whole = max(self._mass[node], _LEAST)
            best = sorted(self._below[node].items(), key=lambda item: -self._mass[item[1]])
            for rank, (piece, below) in enumerate(best):
                ids[at, rank] = piece
                chances[at, rank] = np.log(min(max(self._mass[below], _LEAST) / whole, 1.0))
            rest[at] = min(self._ended[node] / whole, 1.0)
        return Early(ids, chances, rest)


_LEAST = 1e-9
"""Of a chance."""
