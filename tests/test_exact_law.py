"""Every rule that tests draws keeps the target's law exactly: all outcomes of a round are enumerated.

A round that emits fewer tokens than are compared is continued with the target's own law: a rule is right
if one round is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from branches import Branches, outcomes
from exact_rounds import HISTORY, SAMPLINGS, Propose, World, error
from toy_trees import score

from paceline.runtime.contracts import Scored, Verdict
from paceline.runtime.law import Law
from paceline.runtime.rules.laws import LawMaker
from paceline.runtime.rules.walk import Walk
from paceline.runtime.tree import TokenTree


@pytest.fixture(autouse=True)
def _samples_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Law, "sample", lambda law, branches: branches.sample(law))


def draw_tree(world: World, branches: Branches, widths: Sequence[int]) -> TokenTree:
    """Each node of level d draws `widths[d]` children from the draft law, without replacement."""
    rows, maker = world.rows(1), world.maker
    tokens, parents, order = [HISTORY[-1]], [-1], [-1]
    dists: dict[int, Law] = {}
    level = [(0, HISTORY)]
    for width in widths:
        deeper = []
        for node, seen in level:
            left: Law | None = maker.law(rows(seen), seen)
            assert left is not None
            dists[node] = left
            for place in range(width):
                if left is None:
                    break
                token = branches.sample(left)
                left = left.without(token)
                deeper.append((len(tokens), [*seen, token]))
                tokens.append(token)
                parents.append(node)
                order.append(place)
        level = deeper
    sources = ("", *["drawn"] * (len(tokens) - 1))
    return TokenTree(
        np.array(tokens, np.int64), np.array(parents, np.int32), np.array(order, np.int32), sources, dists
    )


SHAPES = {
    "chain": lambda w, b: draw_tree(w, b, (1, 1, 1)),
    "two, then one each": lambda w, b: draw_tree(w, b, (2, 1)),
    "the whole vocabulary": lambda w, b: draw_tree(w, b, (3,)),
    "one, then two": lambda w, b: draw_tree(w, b, (1, 2)),
    "picked": lambda w, b: w.picks(6),
    "drawn, picks beside": lambda w, b: draw_tree(w, b, (2, 1)).merge(w.picks(4)),
    "chain, picks beside": lambda w, b: draw_tree(w, b, (1, 1)).merge(w.picks(5)),
    "picked, chain beside": lambda w, b: w.picks(2).merge(draw_tree(w, b, (1, 1, 1))),
    "stops after a drawn zero": lambda w, b: stop_after_zero(draw_tree(w, b, (1, 1, 1))),
}


def stop_after_zero(tree: TokenTree) -> TokenTree:
    """The stop depends on the drawn token, but that token stays in the tree."""
    zeros = np.flatnonzero(tree.tokens[1:] == 0)
    last = int(zeros[0]) + 1 if len(zeros) else len(tree) - 1
    kept = {node: law for node, law in tree.dists.items() if node < last}
    return TokenTree.chain(tree.tokens[: last + 1], "drawn", kept)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("accept", ["rejection", "block"])
def test_a_round_keeps_the_law_of_the_target(accept: str, shape: str) -> None:
    for seed, sampling in enumerate(SAMPLINGS):
        assert error(World(3, accept, seed, sampling), SHAPES[shape]) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("accept", ["rejection", "block"])
def test_a_round_keeps_the_law_of_wider_targets(accept: str, shape: str, seed: int) -> None:
    assert error(World(4, accept, 10 + seed), SHAPES[shape]) < 1e-12


def wrong_law(world: World, branches: Branches) -> TokenTree:
    """Sampled from q, tested against another q."""
    tree = draw_tree(world, branches, (1, 1))
    flat = {node: Law(law.ids, law.probs**2 / (law.probs**2).sum()) for node, law in tree.dists.items()}
    return replace(tree, dists=flat)


def lost_draw(world: World, branches: Branches) -> TokenTree:
    """A drawn child is removed because of its value and the law stays."""
    tree = draw_tree(world, branches, (2,))
    return replace(
        tree.prune(tree.tokens != 0), dists=tree.dists, draw=tree.draw[(tree.tokens != 0) | (tree.draw < 0)]
    )


def pruned_by_value(world: World, branches: Branches) -> TokenTree:
    """`prune` drops the law where a draw is lost; not enough where the draw's value decided about it."""
    tree = draw_tree(world, branches, (1,))
    return tree.prune(tree.tokens != 0)


@pytest.mark.parametrize("propose", [wrong_law, lost_draw, pruned_by_value])
@pytest.mark.parametrize("accept", ["rejection", "block"])
def test_each_known_mistake_of_a_drafter_breaks_the_law(accept: str, propose: Propose) -> None:
    assert error(World(3, accept, 0), propose) > 1e-3


def test_dropping_by_value_is_harmless_where_every_node_is_a_pick() -> None:
    def propose(world: World, branches: Branches) -> TokenTree:
        tree = draw_tree(world, branches, (2, 1))
        picks = TokenTree.picked(tree.tokens.tolist(), tree.parents.tolist(), tree.sources)
        return picks.prune(picks.tokens != 0)

    assert error(World(3, "rejection", 0), propose) < 1e-12


def test_typical_acceptance_is_lossy_and_says_so() -> None:
    assert not World(3, "typical", 0).rule().lossless
    assert error(World(3, "typical", 0), SHAPES["picked"]) > 1e-3


@dataclass(frozen=True)
class WithReplacement:
    """The residual of draws with replacement, used on draws without."""

    maker: LawMaker
    lossless: bool = False

    def judge(
        self, tree: TokenTree, scored: Scored, history: Sequence[int], rng: np.random.Generator
    ) -> Verdict:
        walk = Walk(tree, scored, history)
        target, draft = self.maker.law(walk.row, walk.seen), tree.dists[0]
        for child in walk.drawn(0):
            token = walk.token_of(child)
            if rng.random() * draft.of(token) < target.of(token):
                walk.enter(child)
                return walk.end(self.maker.law(walk.row, walk.seen).sample(rng))
            target = target.excess(draft)[1] or target
        return walk.end(target.sample(rng))


def test_the_residual_of_draws_with_replacement_is_wrong_for_draws_without() -> None:
    world = World(3, "rejection", 0)
    assert error(world, lambda w, b: draw_tree(w, b, (2,)), WithReplacement(world.maker)) > 1e-3


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_block_verification_never_accepts_less_than_token_by_token(depth: int) -> None:
    better = 0
    for seed in range(3):
        means = []
        for accept in ("rejection", "block"):
            world = World(2, accept, seed)
            rule, target = world.rule(), world.rows(0)

            def accepted(branches: Branches) -> int:
                tree = draw_tree(world, branches, (1,) * depth)  # noqa: B023
                scored = score(target, tree, HISTORY)  # noqa: B023
                return len(rule.judge(tree, scored, HISTORY, branches).path) - 1  # type: ignore[arg-type]  # noqa: B023

            means.append(sum(chance * count for chance, count in outcomes(accepted)))
        assert means[1] >= means[0] - 1e-12
        better += means[1] > means[0] + 1e-6
    assert (better > 0) == (depth > 1)
