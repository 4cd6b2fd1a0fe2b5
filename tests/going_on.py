"""Drafters that go on beside a target's pass, which is over after so many looks."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
from draft_models import VOCAB, draft_model
from toy_vocabularies import DRAFT, across

from paceline.runtime.beside import Lent, Tally, Work
from paceline.runtime.contracts import Drafter, DraftLimit, Early, Outcome
from paceline.runtime.drafters.ahead import Ahead
from paceline.runtime.drafters.branches import Branches
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.drafters.fused import Fused
from paceline.runtime.drafters.growing import Chains, Trees
from paceline.runtime.drafters.head import HeadDrafter
from paceline.runtime.drafters.head_ahead import HeadAhead
from paceline.runtime.drafters.hearing import Ear
from paceline.runtime.drafters.lookup import PromptLookup
from paceline.runtime.drafters.recycle import Recycle
from paceline.runtime.drafters.streaming import Streaming
from paceline.runtime.drafters.tree import TreeModel
from paceline.runtime.model.head import Features, Head
from paceline.runtime.model.streams import Streams
from paceline.runtime.request import Request
from paceline.runtime.translation.crossing import Crossing
from paceline.runtime.tree import TokenTree


class Inline:
    """Runs what drafters left for the target's pass once that begins, and ends it after so many looks.

    says: early, to every other pass.
    """

    def __init__(self, looks: int, says: bool = False) -> None:
        self._looks = self._left = looks
        self._says, self._passes = says, 0
        self.tally, self.timeline = Tally(), None
        self.tree = TokenTree.root(0)
        self.early: Early | None = None
        self._works = list[Work]()

    def later(self, work: Work, lent: Lent | None = None) -> None:
        self._works.append(work)

    def over(self) -> bool:
        self._left -= 1
        return self._left < 0

    def left(self) -> float:
        return inf

    def wait(self) -> None:
        self._left = 0

    def begin(self, tree: TokenTree) -> None:
        self.tree, self._left, self._passes = tree, self._looks, self._passes + 1
        if self._says:
            self.early = flat_law(len(tree), self._passes) if self._passes % 2 else None
        works, self._works = self._works, []
        for work in works:
            work(self)

    def hear(self, early: Early) -> None:
        self.early = early

    def rest(self) -> float:
        self._works.clear()
        return 0.0


def flat_law(nodes: int, seed: int) -> Early:
    """Of each node all tokens of the laws in some order, with some chances."""
    rng = np.random.default_rng([seed, 12])
    ids = np.argsort(rng.random((nodes, VOCAB)), axis=1)
    chances = np.sort(rng.dirichlet(np.ones(VOCAB), nodes))[:, ::-1]
    return Early(ids, np.log(np.maximum(chances, 1e-9)).astype(np.float32))


def said(tokens: list[int], chance: float = 0.9) -> Early:
    """Of each node one token with this chance, and the others with what is left."""
    ids = np.array([[t, *(n for n in range(VOCAB) if n != t)] for t in tokens])
    rest = (1 - chance) / (VOCAB - 1)
    return Early(ids, np.log(np.array([[chance, *[rest] * (VOCAB - 1)]] * len(tokens), np.float32)))


class GoesOn:
    """The drafter `inner`, for a target whose pass begins when a tree is proposed, and ends before the next one."""

    def __init__(self, inner: Drafter, inline: Inline) -> None:
        self.inner, self._inline = inner, inline
        self.name, self.needs = inner.name, inner.needs

    def footprint(self, limit: DraftLimit) -> int:
        return self.inner.footprint(limit)

    def begin(self, request: Request) -> None:
        self.inner.begin(request)

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        self._inline.rest()
        tree = self.inner.propose(tokens, limit)
        self._inline.begin(tree)
        return tree

    def observe(self, outcome: Outcome) -> None:
        self.inner.observe(outcome)

    def reset(self) -> None:
        self.inner.reset()


def ahead(context: int = 512, branches: Branches = "exit") -> GoesOn:
    """The draft model's chain, which goes on for a few passes beside the target's."""
    model, inline = draft_model(context), Inline(3, says=True)
    chain = ChainModel(model, VOCAB)
    return GoesOn(Ahead(model, VOCAB, chain, Chains("chain"), inline, branches), inline)


def tree_ahead(context: int = 512, branches: Branches = "exit") -> GoesOn:
    """The draft model's tree, which goes on so."""
    model, inline = draft_model(context), Inline(3, says=True)
    return GoesOn(Ahead(model, VOCAB, TreeModel(model, VOCAB), Trees("tree"), inline, branches), inline)


def tree_ahead_fused() -> GoesOn:
    """The same in one tree with others."""
    model, inline = draft_model(), Inline(3, says=True)
    drafter = Ahead(model, VOCAB, TreeModel(model, VOCAB), Trees("tree"), inline, "exit")
    others = [drafter, PromptLookup(worth=0.02), Recycle(VOCAB, worth=0.02)]
    return GoesOn(Fused(others, worth=0.02, costly=frozenset({"tree"})), inline)


def ahead_across(learnt: bool = True) -> GoesOn:
    """The same for a target of another vocabulary."""
    model, inline, words = draft_model(), Inline(3, says=True), len(DRAFT)
    crossing = Crossing(inline, Ear(VOCAB))
    drafter = Ahead(model, words, ChainModel(model, words), Chains("chain"), crossing, "exit")
    return GoesOn(across(drafter, learnt=learnt, crossing=crossing), inline)


def tree_ahead_across() -> GoesOn:
    """The draft model's tree for a target of another vocabulary."""
    model, inline, words = draft_model(), Inline(3, says=True), len(DRAFT)
    crossing = Crossing(inline, Ear(VOCAB))
    drafter = Ahead(model, words, TreeModel(model, words), Trees("tree"), crossing, "exit")
    return GoesOn(across(drafter, crossing=crossing), inline)


def streams_ahead(serial: HeadDrafter, branches: Branches = "exit", looks: int = 3) -> GoesOn:
    """Streams that go on so."""
    inline, streams = Inline(looks, says=True), serial.head
    assert isinstance(streams, Streams)
    ways = Streaming(serial, streams)
    return GoesOn(Ahead(streams.model, VOCAB, serial, ways, inline, branches, reading=ways), inline)


def head_ahead(serial: HeadDrafter, features: Features, looks: int = 3) -> GoesOn:
    """A head that goes on so; what it proposes depends on what it had time for."""
    inline, head = Inline(looks, says=True), serial.head
    assert isinstance(head, Head)
    return GoesOn(HeadAhead(serial, head, features, VOCAB, inline, "exit"), inline)
