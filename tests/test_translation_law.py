"""Drafts of another vocabulary keep the target's law exactly: all outcomes of a round are enumerated.

The rule as it was published, which knows of a drafted path its own readings alone, must fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from branches import Branches
from exact_rounds import HISTORY, SAMPLINGS, World, error
from toy_trees import rows_of
from toy_vocabularies import sides
from toys import TableModel

from paceline.runtime.contracts import DraftLimit, Scored, Verdict
from paceline.runtime.law import Law
from paceline.runtime.request import Request
from paceline.runtime.rules.laws import LawMaker
from paceline.runtime.rules.walk import Walk
from paceline.runtime.translation.lattice import Lattice
from paceline.runtime.translation.sides import Sides
from paceline.runtime.tree import TokenTree

PAIRS = {
    "merges": sides((b"a", b"b"), (b"a", b"b", b"ab")),
    "merges into merges": sides((b"a", b"b"), (b"a", b"ab", b"aab", b"b")),
    "splits": sides((b"a", b"b", b"ba"), (b"a", b"b", b"ab")),
    "pieces without counterpart": sides((b"a", b"b", b"c"), (b"ab", b"ba", b"a")),
    "two pieces that mean the same": sides((b"a", b"b", b"a"), (b"a", b"b", b"ab")),
    "nothing in common": sides((b"a",), (b"x", b"y", b"z")),
}
LIMITS = {"wide": DraftLimit(16, 8), "three nodes": DraftLimit(3, 8), "two levels": DraftLimit(16, 2)}


@pytest.fixture(autouse=True)
def _samples_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Law, "sample", lambda law, branches: branches.sample(law))


def drawn(pair: Sides, world: World, branches: Branches, depth: int = 3) -> TokenTree:
    """A chain of the draft model's own tokens, each drawn from its law."""
    rows = rows_of(TableModel(len(pair.draft), order=2, sharpness=1.5, seed=world.seed + 50))
    maker, text, dists = LawMaker(replace(world.sampling, top_k=0), 0), [0], dict[int, Law]()
    for node in range(depth):
        dists[node] = maker.law(rows(text), text)
        text.append(branches.sample(dists[node]))
    return TokenTree.chain(text, "chain", dists, [1.0] + [0.7] * depth)


def translated(
    pair: Sides, world: World, branches: Branches, limit: DraftLimit, forget: bool = False
) -> TokenTree:
    lattice = Lattice(pair, pair.ngrams)
    accept = "rejection" if forget else world.accept
    lattice.begin(Request(world.sampling, accept, 0, 0, 1))
    return lattice.translate(HISTORY[-1:], drawn(pair, world, branches), limit).tree


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("accept", ["rejection", "block"])
def test_a_translated_draft_keeps_the_law_of_the_target(accept: str, pair: str, limit: str) -> None:
    both = PAIRS[pair]
    for seed, sampling in enumerate(SAMPLINGS):
        world = World(len(both.target), accept, seed, sampling)
        assert error(world, lambda w, b: translated(both, w, b, LIMITS[limit])) < 1e-12


def test_as_picks_it_does_so_too() -> None:
    """Mode A: what was drawn is asked for and not tested."""
    both = PAIRS["merges into merges"]

    def picked(world: World, branches: Branches) -> TokenTree:
        tree = translated(both, world, branches, LIMITS["wide"])
        return TokenTree.picked(tree.tokens.tolist(), tree.parents.tolist(), tree.sources)

    assert error(World(4, "rejection", 1), picked) < 1e-12


@dataclass(frozen=True)
class Published:
    """One merged chain, tested against the products of its pieces' chances, of which the residual knows the drawn path.

    The chance of a first piece is less that of a merge that was seen (2507.02659, section 3.2).
    """

    maker: LawMaker
    lossless: bool = False

    def judge(
        self, tree: TokenTree, scored: Scored, history: Sequence[int], rng: np.random.Generator
    ) -> Verdict:
        walk = Walk(tree, scored, history)
        target, draft = self.maker.law(walk.row, walk.seen), tree.dists.get(0)
        child = next(iter(walk.tree.children(0)), None)
        if child is None or draft is None:
            return walk.end(target.sample(rng))
        token = walk.token_of(child)
        if rng.random() * draft.of(token) < target.of(token):
            walk.enter(child)
            return walk.end(self.maker.law(walk.row, walk.seen).sample(rng))
        left = target.excess(draft)[1]
        return walk.end((left or target).sample(rng))


def merged(world: World, branches: Branches, everywhere: bool) -> TokenTree:
    """Two drawn pieces as one token or two, drawn from the law that this makes of the draft model's.

    everywhere: the chance of the merge counts whatever was drawn, and not only where it was seen.
    """
    both = PAIRS["merges"]
    draft = drawn(both, world, branches, depth=2)
    first, second = draft.tokens.tolist()[1:]
    rows = rows_of(TableModel(2, order=2, sharpness=1.5, seed=world.seed + 50))
    maker = LawMaker(world.sampling, 0)
    alone, after = maker.law(rows([0]), [0]), maker.law(rows([0, 0]), [0, 0])
    together = alone.of(0) * after.of(1) if everywhere or first == 0 else 0.0
    law = np.array([alone.of(0) - together, alone.of(1), together])
    ids = np.flatnonzero(law > 0)
    token = 2 if (first, second) == (0, 1) else first
    return TokenTree.chain([HISTORY[-1], token], "chain", {0: Law(ids, law[ids] / law.sum())})


@pytest.mark.parametrize("seed", range(4))
def test_the_published_rule_is_exact_only_where_every_merge_counts(seed: int) -> None:
    """The negative control: it knows the merge of the drawn path, and none beside it."""
    world = World(3, "rejection", seed)
    rule = Published(world.maker)
    assert error(world, lambda w, b: merged(w, b, everywhere=True), rule) < 1e-12
    biased = [
        error(World(3, "rejection", s), lambda w, b: merged(w, b, everywhere=False), rule) for s in range(4)
    ]
    assert max(biased) > 1e-2


def test_a_draw_that_was_judged_in_a_block_is_none_elsewhere() -> None:
    """A negative control: below a merged token the same draws are no draws any more where a block looked at them."""
    both = PAIRS["merges"]
    found = [
        error(
            World(3, "block", seed, sampling),
            lambda w, b: translated(both, w, b, LIMITS["wide"], forget=True),
        )
        for seed, sampling in enumerate(SAMPLINGS)
    ]
    assert max(found) > 1e-7
