"""What a drafter may cost, for every drafter: prices bound what it drafts, its footprint bounds what it holds."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from going_on import GoesOn
from law_rounds import GREEDY, WIDE, Wrapped, every_drafter, rounds, scored
from law_subjects import SUBJECTS, VOCAB

from paceline.runtime.contracts import Drafter, DraftLimit, Outcome, Verdict
from paceline.runtime.drafters.fused import Fused
from paceline.runtime.drafters.kinds import KINDS, Kind
from paceline.runtime.drafters.plain import Plain
from paceline.runtime.request import Request, Sampling
from paceline.runtime.tree import TokenTree

# -- prices --------------------------------------------------------------------------------------------------

NODES, DEPTH = 64, 5
"""More nodes than any subject finds so deep, so that only prices bound them."""
PICKED = Request(Sampling(temperature=1.0), "typical", 0, 0, 9)
"""Every node is a pick, and nothing learnt stands between what a drafter thinks of a node and its price."""
LADDER = [n / 20 for n in range(1, 21)]
STEPS = [
    (0.05, 0.4),
    (0.05, 0.05, 0.05, 0.6),
    (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    (0.05, 0.05, 1.05),
    (0.3,),
]
"""Prices of the first nodes; those after them cost as much as the last."""

Path = tuple[int, ...]


def paths(tree: TokenTree) -> list[Path]:
    """The tokens down to each node but the root, in the order of the tree."""
    return [tuple(tree.tokens[list(tree.path(node))[1:]].tolist()) for node in range(1, len(tree))]


def flat(price: float) -> DraftLimit:
    return DraftLimit(NODES, DEPTH, node_price=price)


def inside(drafter: Drafter) -> Drafter:
    """The drafter that goes on beside a target."""
    return drafter.inner if isinstance(drafter, GoesOn) else drafter


def shown(drafter: Drafter, tokens: Sequence[int]) -> dict[Path, float]:
    """What each node is worth to the drafter: the highest price, the same for all nodes, at which it is drafted."""
    found: dict[Path, float] = {}
    for price in LADDER:
        found |= dict.fromkeys(paths(drafter.propose(tokens, flat(price))), price)
    return found


def chances(tree: TokenTree, worth: dict[Path, float]) -> list[float]:
    """Of each node but the root: what the drafter states, down its path; where it states nothing what it showed."""
    stated = [1.0]
    for node, parent in enumerate(tree.parents.tolist()[1:], 1):
        stated.append(stated[parent] * (tree.scores[node] if tree.scores else 0.0))
    return [chance or worth.get(path, 0.0) for chance, path in zip(stated[1:], paths(tree), strict=True)]


def check_prices(drafter: Drafter, seed: int, request: Request = PICKED) -> int:
    """Nothing is drafted at a price above 1, and no node for less than it costs. Returns how many were drafted.

    The n-th node is that of the tree, or the n-th best. A fusion, whose chances nobody can ask for, has the first half.
    """
    drafted = 0
    for tokens, outcome in rounds(drafter, seed, 16, request):
        before = tokens[: len(tokens) - len(outcome.verdict.path)]
        for limit in (flat(1.01), flat(7.0), DraftLimit(NODES, DEPTH, node_prices=(1.5,), node_price=2.0)):
            assert len(drafter.propose(before, limit)) == 1, "a node that costs more than a token"
        if isinstance(inside(drafter), Fused) or request is not PICKED:
            continue
        worth = shown(drafter, before)
        for prices in STEPS:
            tree = drafter.propose(before, replace(flat(prices[-1]), node_prices=prices))
            found = chances(tree, worth)
            cost = [prices[min(n, len(prices) - 1)] for n in range(len(found))]
            ways = (found, sorted(found, reverse=True))
            assert any(all(c > p - 1e-9 for c, p in zip(way, cost, strict=True)) for way in ways), (
                "a node that is worth less than it costs"
            )
            drafted += len(found)
    return drafted


@every_drafter
@pytest.mark.parametrize(
    "request_", [PICKED, GREEDY, replace(PICKED, accept="coupled")], ids=lambda r: r.accept
)
def test_no_node_is_drafted_for_less_than_it_costs(name: str, request_: Request) -> None:
    made = [SUBJECTS[name]() for _ in range(3)]
    drafted = sum(check_prices(drafter, seed, request_) for seed, drafter in enumerate(made))
    if request_ is PICKED and not isinstance(inside(made[0]), Fused | Plain):
        assert drafted > 0


class Blind(Wrapped):
    """Sees other prices than there are."""

    def __init__(self, inner: Drafter, seen: Callable[[DraftLimit], DraftLimit]) -> None:
        super().__init__(inner)
        self.seen = seen

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        return self.inner.propose(tokens, self.seen(limit))


@pytest.mark.parametrize("name", ["lookup", "suffix", "recycle", "chain", "tree", "table", "lookup,recycle"])
def test_a_drafter_that_ignores_prices_is_caught(name: str) -> None:
    blind = Blind(SUBJECTS[name](), lambda limit: DraftLimit(limit.nodes, limit.depth, node_price=0.02))
    with pytest.raises(AssertionError, match="costs more than a token"):
        check_prices(blind, 0)


@pytest.mark.parametrize("name", ["lookup", "suffix", "recycle", "chain", "tree", "table"])
def test_a_drafter_that_looks_at_the_first_price_only_is_caught(name: str) -> None:
    blind = Blind(SUBJECTS[name](), lambda limit: flat(limit.price(1)))
    with pytest.raises(AssertionError, match="worth less than it costs"):
        check_prices(blind, 0)


def test_a_drafter_whose_words_are_not_what_it_does_is_caught() -> None:
    class Modest(Wrapped):
        def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
            tree = super().propose(tokens, limit)
            return replace(tree, scores=tuple(score / 4 for score in tree.scores))

    with pytest.raises(AssertionError, match="worth less than it costs"):
        check_prices(Modest(SUBJECTS["table"]()), 0)


# -- memory --------------------------------------------------------------------------------------------------

PASSES = 600
FIXED = 24_000
"""Bytes of a drafter's own objects and of tables whose size nothing changes, which no footprint counts."""
ALONE = [name for name, subject in SUBJECTS.items() if not subject.model]


def check_held(make: Callable[[], Drafter]) -> None:
    """What is held after many passes over a growing text, two answers and as many texts is within the footprint."""
    rng = np.random.default_rng(3)
    text = rng.integers(0, VOCAB, PASSES + 9).tolist()
    _serve(make(), text[:60])  # what is made once for all drafters
    gc.collect()
    tracemalloc.start()
    try:
        drafter = make()
        for first in range(0, PASSES, PASSES // 2):
            drafter.begin(replace(GREEDY, number=first))
            _serve(drafter, text[first : first + PASSES // 2])
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    most = drafter.footprint(WIDE) + FIXED
    assert held <= most, f"{drafter.name} holds {held} bytes, {most} at most were promised"


def _serve(drafter: Drafter, text: list[int]) -> None:
    drafter.begin(GREEDY)
    tokens = text[:1]
    for at in range(1, len(text)):
        tree = drafter.propose(tokens, WIDE)
        drafter.observe(Outcome(tree, scored(tree, at), Verdict((0,), text[at], 1)))
        tokens.append(text[at])


@pytest.mark.parametrize("name", ALONE)
def test_a_drafter_holds_no_more_than_its_footprint(name: str) -> None:
    check_held(SUBJECTS[name])


@pytest.mark.parametrize("kept", [100, 100_000])
@pytest.mark.parametrize("name", ["none", "lookup in a small window"])
def test_a_drafter_that_keeps_more_with_every_pass_is_caught(name: str, kept: int) -> None:
    class Hoarding(Wrapped):
        def __init__(self) -> None:
            super().__init__(SUBJECTS[name]())
            self.kept: list[np.ndarray] = []

        def observe(self, outcome: Outcome) -> None:
            super().observe(outcome)
            self.kept.append(np.zeros(kept, np.uint8))

    with pytest.raises(AssertionError, match="bytes"):
        check_held(Hoarding)


# -- nobody is left out --------------------------------------------------------------------------------------


def untried(kinds: Sequence[Kind]) -> list[str]:
    """Words that no subject of the laws drafts by."""
    tried = {name for subject in SUBJECTS.values() for name in subject().name.split(",")}
    return [kind.word for kind in kinds if kind.word not in tried]


def test_the_laws_are_tested_on_every_kind() -> None:
    pytest.importorskip("onnx")  # it writes the toy head
    assert untried(KINDS) == []


def test_a_kind_without_a_subject_is_found() -> None:
    assert untried([*KINDS, replace(KINDS[0], word="echo")]) == ["echo"]
