"""Every drafter that the laws are tested on: a name, and how to make a fresh one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
from draft_models import VOCAB, draft_graph, draft_model
from going_on import (
    ahead,
    ahead_across,
    head_ahead,
    streams_ahead,
    tree_ahead,
    tree_ahead_across,
    tree_ahead_fused,
)
from toy_vocabularies import DRAFT, across
from toys import TableModel

from paceline.runtime.contracts import Drafter, DraftLimit, Outcome
from paceline.runtime.drafters.auto import Auto
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.drafters.draw import Draw, make_draw
from paceline.runtime.drafters.fused import Fused
from paceline.runtime.drafters.head import Growth, HeadDrafter
from paceline.runtime.drafters.lookup import PromptLookup
from paceline.runtime.drafters.plain import Plain
from paceline.runtime.drafters.recycle import Recycle
from paceline.runtime.drafters.store import SuffixStore
from paceline.runtime.drafters.suffix import Suffix
from paceline.runtime.drafters.tree import TreeModel
from paceline.runtime.law import Law
from paceline.runtime.model.model import Model
from paceline.runtime.model.streams import Streams
from paceline.runtime.model.taps import TapBuffer
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree


class TableChain:
    """A draft model without a cache: a table model that samples or picks as the rule in use wants it.

    It stops at the prices, by its scores as they are: those of draws depend on the law and not on what was drawn.
    """

    name = "table"
    needs: frozenset[str] = frozenset()

    def __init__(self, vocab: int, seed: int = 99) -> None:
        self._model = TableModel(vocab, order=1, sharpness=2.0, seed=seed)
        self._draw: Draw | None = None

    def footprint(self, limit: DraftLimit) -> int:
        return 0

    def begin(self, request: Request) -> None:
        rng = np.random.default_rng([request.seed, request.number, 1])
        self._draw = make_draw(request, self._model.vocab, rng)

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        assert self._draw is not None
        history, dists, scores, chance = list(tokens), dict[int, Law](), [1.0], 1.0
        for node in range(min(limit.nodes, limit.depth)):
            children = self._draw.children(self._model.row(history), history, 1)
            chance *= children.scores[0]
            if chance < limit.price(node + 1):
                break
            if children.law is not None:
                dists[node] = children.law
            history.append(children.tokens[0])
            scores.append(children.scores[0])
        return TokenTree.chain(history[len(tokens) - 1 :], self.name, dists, scores)

    def observe(self, outcome: Outcome) -> None:
        pass

    def reset(self) -> None:
        pass


class Rotating(Auto):
    """Puts another drafter in charge after every few observed rounds, as the controller does by the clock."""

    def __init__(self, arms: dict[str, Drafter]) -> None:
        super().__init__(arms)
        self._names, self._seen = list(arms), 0

    def begin(self, request: Request) -> None:
        super().begin(request)
        if request.draft_dependent:
            self._seen = 0
            self.switch(self._names[0])

    def observe(self, outcome: Outcome) -> None:
        super().observe(outcome)
        self._seen += 1
        self.switch(self._names[self._seen // 3 % len(self._names)])


def stream_drafter(context: int = 512, growth: Growth = "dynamic") -> HeadDrafter:
    """The storyteller's draft model as if its last three ids were streams, which nobody trained."""
    graph, part = draft_graph()
    part = msgspec.structs.replace(part, kind="streaming decoder", streams=3, product=True)
    model = Model(graph, part, context, widest=4 * part.deepest, scratch=48)
    return HeadDrafter(Streams(model, VOCAB), None, "streams", growth)


@cache
def hidden_states() -> TapBuffer:
    """Of a text whose rows depend on nothing but their place."""
    rows, buffer = (
        np.random.default_rng(8).normal(size=(1000, 4)).astype(np.float32),
        TapBuffer(["hidden"], 4, 1000),
    )
    buffer.write(0, {"hidden": rows}, slice(None))
    return buffer


def head_drafter(
    attends: bool,
    context: int | None = None,
    trees: tuple[tuple[int, int], ...] = (),
    growth: Growth = "dynamic",
    product: bool = False,
) -> HeadDrafter:
    """Over a toy head that knows all of the tokens but one; product: as if no level knew what the others chose."""
    from toy_heads import opened  # the exporter's library writes it

    head = opened(VOCAB, (0, 1, 3, 4, 5), attends, trees=trees).head(context)
    head.model.part = msgspec.structs.replace(head.model.part, product=product)
    return HeadDrafter(head, hidden_states(), growth=growth)


@dataclass(frozen=True)
class Subject:
    """make: a fresh one. committed: its proposals depend on nothing but the committed tokens. model: it runs one.

    timed: they depend on how much time it had beside the target's passes.
    """

    make: Callable[[], Drafter]
    committed: bool = False
    model: bool = False
    timed: bool = False

    def __call__(self) -> Drafter:
        return self.make()


SUBJECTS: dict[str, Subject] = {
    "none": Subject(Plain, committed=True),
    "chain": Subject(lambda: ChainModel(draft_model(), VOCAB), model=True),
    "chain that outgrows its context": Subject(lambda: ChainModel(draft_model(8), VOCAB), model=True),
    "chain that goes on": Subject(ahead, model=True),
    "chain that goes on by itself": Subject(lambda: ahead(branches="weight"), model=True),
    "chain that goes on beyond its context": Subject(lambda: ahead(8), model=True),
    "chain that goes on in another vocabulary": Subject(ahead_across, model=True),
    "tree that goes on": Subject(tree_ahead, model=True),
    "tree that goes on by itself": Subject(lambda: tree_ahead(branches="weight"), model=True),
    "tree that goes on beyond its context": Subject(lambda: tree_ahead(8), model=True),
    "tree that goes on in another vocabulary": Subject(tree_ahead_across, model=True),
    "tree,lookup,recycle that goes on": Subject(tree_ahead_fused, model=True),
    "chain that goes on in another vocabulary and learns runs": Subject(
        lambda: ahead_across(learnt=False), model=True
    ),
    "tree": Subject(lambda: TreeModel(draft_model(), VOCAB, frontier=3), model=True),
    "tree that outgrows its context": Subject(
        lambda: TreeModel(draft_model(8), VOCAB, frontier=3), model=True
    ),
    "streams": Subject(stream_drafter, model=True),
    "streams that outgrow their context": Subject(lambda: stream_drafter(8), model=True),
    "streams with static trees": Subject(lambda: stream_drafter(growth="static"), model=True),
    "streams that go on": Subject(lambda: streams_ahead(stream_drafter()), model=True),
    "streams that go on by themselves": Subject(
        lambda: streams_ahead(stream_drafter(), "weight"), model=True
    ),
    "streams that go on in a window": Subject(
        lambda: streams_ahead(stream_drafter(), "window"), model=True, timed=True
    ),
    "streams that go on beyond their context": Subject(lambda: streams_ahead(stream_drafter(8)), model=True),
    "streams that go on with static trees": Subject(
        lambda: streams_ahead(stream_drafter(growth="static")), model=True
    ),
    "streams,lookup": Subject(
        lambda: Fused(
            [stream_drafter(), PromptLookup(worth=0.02)], worth=0.02, costly=frozenset({"streams"})
        ),
        model=True,
    ),
    "auto with streams": Subject(
        lambda: Rotating({"streams": stream_drafter(), "recycle": Recycle(VOCAB), "none": Plain()}),
        model=True,
    ),
    "chain,lookup": Subject(
        lambda: Fused(
            [ChainModel(draft_model(), VOCAB), PromptLookup(worth=0.02)],
            worth=0.02,
            costly=frozenset({"chain"}),
        ),
        model=True,
    ),
    "auto": Subject(
        lambda: Rotating(
            {"chain": ChainModel(draft_model(), VOCAB), "recycle": Recycle(VOCAB), "none": Plain()}
        ),
        model=True,
    ),
    "table": Subject(lambda: TableChain(VOCAB)),
    "chain of another vocabulary": Subject(lambda: across(ChainModel(draft_model(), len(DRAFT))), model=True),
    "chain of another vocabulary that learns runs": Subject(
        lambda: across(ChainModel(draft_model(), len(DRAFT)), learnt=False), model=True
    ),
    "tree of another vocabulary": Subject(
        lambda: across(TreeModel(draft_model(), len(DRAFT), frontier=3)), model=True
    ),
    "chain of shared tokens": Subject(
        lambda: across(ChainModel(draft_model(), len(DRAFT)), "intersection"), model=True
    ),
    "chain cut anew": Subject(lambda: across(ChainModel(draft_model(), len(DRAFT)), "text"), model=True),
    "chain of another vocabulary,lookup": Subject(
        lambda: Fused(
            [across(ChainModel(draft_model(), len(DRAFT))), PromptLookup(worth=0.02)],
            worth=0.02,
            costly=frozenset({"chain"}),
        ),
        model=True,
    ),
    "table of another vocabulary": Subject(lambda: across(TableChain(len(DRAFT)))),
    "lookup": Subject(lambda: PromptLookup(worth=0.02), committed=True),
    "lookup in a small window": Subject(lambda: PromptLookup(worth=0.02, capacity=12), committed=True),
    "suffix": Subject(lambda: Suffix(worth=0.02), committed=True),
    "suffix in a small window": Subject(lambda: Suffix(worth=0.02, capacity=12), committed=True),
    "suffix with a store": Subject(
        lambda: Suffix(SuffixStore(Path("never saved"), "table"), worth=0.02), committed=True
    ),
    "recycle": Subject(lambda: Recycle(VOCAB, worth=0.02)),
    "lookup,recycle": Subject(lambda: Fused([PromptLookup(), Recycle(VOCAB)])),
    "table,suffix": Subject(lambda: Fused([TableChain(VOCAB), Suffix(worth=0.02)], worth=0.02)),
    "everything": Subject(
        lambda: Fused(
            [PromptLookup(worth=0.02), Suffix(worth=0.02), Recycle(VOCAB, worth=0.02), TableChain(VOCAB)],
            worth=0.02,
        )
    ),
}


def _beside_target() -> Drafter:
    """The target with blocks left out, beside one that reads along."""
    from small_skips import skipping_drafter  # the exporter's library writes it

    return skipping_drafter(VOCAB)


def _left_early(part: str, own: int = 512) -> Drafter:
    """The target's first layers, and what says tokens behind them, beside a target that reads along."""
    from small_exits import leaving_drafter

    return leaving_drafter(part, VOCAB, own)


if find_spec("onnx"):
    SUBJECTS |= {
        "exit through a block": Subject(lambda: _left_early("roo"), model=True),
        "exit that outgrows its context": Subject(lambda: _left_early("roo", 8), model=True),
        "exit after the best layer": Subject(lambda: _left_early("del"), model=True),
        "exit,lookup": Subject(
            lambda: Fused(
                [_left_early("roo"), PromptLookup(worth=0.02)], worth=0.02, costly=frozenset({"exit"})
            ),
            model=True,
        ),
        "auto with an exit": Subject(
            lambda: Rotating({"exit": _left_early("del"), "recycle": Recycle(VOCAB), "none": Plain()}),
            model=True,
        ),
        "skip": Subject(_beside_target, model=True),
        "skip,lookup": Subject(
            lambda: Fused(
                [_beside_target(), PromptLookup(worth=0.02)], worth=0.02, costly=frozenset({"skip"})
            ),
            model=True,
        ),
        "auto with a skip": Subject(
            lambda: Rotating({"skip": _beside_target(), "recycle": Recycle(VOCAB), "none": Plain()}),
            model=True,
        ),
        "head": Subject(lambda: head_drafter(attends=True), model=True),
        "head without a cache": Subject(lambda: head_drafter(attends=False), model=True),
        "head that outgrows its context": Subject(lambda: head_drafter(attends=True, context=8), model=True),
        "head that branches": Subject(lambda: head_drafter(attends=True, trees=((2, 2), (3, 3))), model=True),
        "head that branches without a cache": Subject(
            lambda: head_drafter(attends=False, trees=((3, 2),)), model=True
        ),
        "head of independent levels": Subject(lambda: head_drafter(attends=False, product=True), model=True),
        "head with static trees": Subject(lambda: head_drafter(attends=True, growth="static"), model=True),
        "head that branches,lookup": Subject(
            lambda: Fused(
                [head_drafter(attends=True, trees=((3, 3),)), PromptLookup(worth=0.02)],
                worth=0.02,
                costly=frozenset({"head"}),
            ),
            model=True,
        ),
        "head,lookup": Subject(
            lambda: Fused(
                [head_drafter(attends=True), PromptLookup(worth=0.02)], worth=0.02, costly=frozenset({"head"})
            ),
            model=True,
        ),
        "head that goes on": Subject(
            lambda: head_ahead(head_drafter(attends=True), hidden_states()), model=True, timed=True
        ),
        "head without a cache that goes on": Subject(
            lambda: head_ahead(head_drafter(attends=False), hidden_states()), model=True, timed=True
        ),
        "head that goes on beyond its context": Subject(
            lambda: head_ahead(head_drafter(attends=True, context=8), hidden_states()), model=True, timed=True
        ),
        "head that has no time to go on": Subject(
            lambda: head_ahead(head_drafter(attends=True), hidden_states(), 0), model=True
        ),
        "auto with a head": Subject(
            lambda: Rotating(
                {"head": head_drafter(attends=True), "recycle": Recycle(VOCAB), "none": Plain()}
            ),
            model=True,
        ),
    }
