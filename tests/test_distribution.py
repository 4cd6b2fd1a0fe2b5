"""The rules with real random numbers: decoded tokens against the target's law on a toy vocabulary.

The threshold is the largest total variation that exact samples of the same size show. The enumeration of
test_exact_law is sharper; this one also covers the drafters' draws, several rounds and the generators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import pytest
from toy_trees import Rows, decode, drawn_tree, exact_law, picked_tree, rows_of
from toys import TableModel

from paceline.runtime.contracts import AcceptanceRule, Scored, Verdict
from paceline.runtime.drafters.draw import make_draw
from paceline.runtime.law import Law
from paceline.runtime.request import Request, Sampling
from paceline.runtime.rules.laws import LawMaker
from paceline.runtime.rules.registry import make_rule
from paceline.runtime.tree import TokenTree

VOCAB, COUNT, HISTORY = 4, 2, [1, 2, 0]
Propose = Callable[[list[int]], TokenTree]


@dataclass
class World:
    """One target, one drafter, one way to sample, and the random states of both sides."""

    request: Request
    target: Rows
    draft: Rows
    drafter: np.random.Generator
    verifier: np.random.Generator

    def tree(self, tokens: Sequence[int], widths: Sequence[int], picks: bool = False) -> TokenTree:
        draw = make_draw(self.request, VOCAB, self.drafter, picks=picks)
        return drawn_tree(draw, self.draft, tokens, widths)

    def picked(self, tokens: Sequence[int], nodes: int = 5) -> TokenTree:
        return picked_tree(self.drafter, int(tokens[-1]), VOCAB, nodes)


def world(accept: str, sampling: Sampling, seed: int = 0) -> World:
    request = Request(sampling, accept, seed, 0, 1)
    return World(
        request,
        rows_of(TableModel(VOCAB, order=2, sharpness=1.2, seed=10 + seed)),
        rows_of(TableModel(VOCAB, order=2, sharpness=1.2, seed=50 + seed)),
        np.random.default_rng([seed, 1]),
        np.random.default_rng([seed, 2]),
    )


def chain(w: World, tokens: list[int]) -> TokenTree:
    return w.tree(tokens, (1, 1, 1))


def sampled(w: World, tokens: list[int]) -> TokenTree:
    return w.tree(tokens, (2, 2))


def whole_vocabulary(w: World, tokens: list[int]) -> TokenTree:
    return w.tree(tokens, (VOCAB, 1))


def picked(w: World, tokens: list[int]) -> TokenTree:
    return w.picked(tokens)


def mixed(w: World, tokens: list[int]) -> TokenTree:
    return w.tree(tokens, (2, 1)).merge(w.picked(tokens))


def chain_and_picks(w: World, tokens: list[int]) -> TokenTree:
    return chain(w, tokens).merge(w.picked(tokens))


def picks_and_chain(w: World, tokens: list[int]) -> TokenTree:
    return w.picked(tokens, 2).merge(chain(w, tokens))


def chain_that_stops_after_a_zero(w: World, tokens: list[int]) -> TokenTree:
    """The stop depends on the drawn token, but that token stays in the tree."""
    tree = chain(w, tokens)
    zeros = np.flatnonzero(tree.tokens[1:] == 0)
    last = int(zeros[0]) + 1 if len(zeros) else len(tree) - 1
    kept = {node: law for node, law in tree.dists.items() if node < last}
    return TokenTree.chain(tree.tokens[: last + 1], "drawn", kept)


def picks_without_zeros(w: World, tokens: list[int]) -> TokenTree:
    """Dropping nodes by their value is allowed where everything is picked."""
    tree = w.tree(tokens, (2, 2), picks=True)
    return tree.prune(tree.tokens != 0)


LOSSLESS = [
    *[("rejection", tree) for tree in (sampled, mixed, chain_that_stops_after_a_zero)],
    *[("block", tree) for tree in (chain_and_picks, picks_and_chain)],
    *[("coupled", tree) for tree in (chain_and_picks, picked)],
    *[
        ("rejection", tree)
        for tree in (chain, whole_vocabulary, picked, picks_and_chain, picks_without_zeros)
    ],
    *[("block", tree) for tree in (chain, sampled, mixed, picks_without_zeros)],
    *[("coupled", tree) for tree in (chain, sampled, mixed)],
]
FAST, NAMES = LOSSLESS[:7], {"ids": lambda v: v if isinstance(v, str) else v.__name__}
SAMPLING = Sampling(temperature=1.0)


def distance(
    w: World,
    propose: Callable[[World, list[int]], TokenTree],
    size: int,
    rule: Callable[[World], AcceptanceRule] | None = None,
) -> tuple[float, float]:
    """(total variation of `size` decodings from the exact law, largest one that exact samples show)."""
    exact = exact_law(LawMaker(w.request.sampling, 1), w.target, HISTORY, VOCAB, COUNT)
    counts = np.zeros(VOCAB**COUNT)
    build = rule or (lambda v: make_rule(v.request))
    judge = build(w)
    for sample in range(size):
        if w.request.accept == "coupled":  # its only randomness is the seed
            w.request = replace(w.request, seed=sample)
            judge = build(w)
        words = decode(judge, w.target, lambda tokens: propose(w, tokens), HISTORY, COUNT, w.verifier)
        counts[np.ravel_multi_index(words, (VOCAB,) * COUNT)] += 1
    noise = np.random.default_rng(0).multinomial(size, exact, 3000) / size
    limits = 0.5 * np.abs(noise - exact).sum(axis=1)
    return 0.5 * float(np.abs(counts / size - exact).sum()), float(limits.max())


@pytest.mark.parametrize(("accept", "tree"), FAST, **NAMES)
def test_lossless_rules_keep_the_law_of_the_target(accept: str, tree: Callable[..., TokenTree]) -> None:
    w = world(accept, SAMPLING)
    assert make_rule(w.request).lossless
    found, limit = distance(w, tree, 800)
    assert found < limit


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [SAMPLING, Sampling(temperature=1.3, top_p=0.85, min_p=0.05, presence_penalty=0.5)],
    ids=["temperature", "top_p"],
)
@pytest.mark.parametrize(("accept", "tree"), LOSSLESS, **NAMES)
def test_lossless_rules_keep_the_law_in_larger_samples(
    accept: str, tree: Callable[..., TokenTree], sampling: Sampling
) -> None:
    found, limit = distance(world(accept, sampling, 1), tree, 8000)
    assert found < limit


def wrong_law(w: World, tokens: list[int]) -> TokenTree:
    """Sampled from q, tested against another q."""
    tree = chain(w, tokens)
    flat = {node: Law(law.ids, law.probs**2 / (law.probs**2).sum()) for node, law in tree.dists.items()}
    return replace(tree, dists=flat)


def same_random_numbers(w: World, tokens: list[int]) -> TokenTree:
    """The drafter draws with the verifier's own random numbers."""
    w.drafter = deepcopy(w.verifier)
    maker = LawMaker(w.request.sampling, 1)
    law = maker.law(w.draft(tokens), tokens)
    return TokenTree.chain([tokens[-1], law.sample(w.drafter)], "drawn", {0: law})


@pytest.mark.parametrize("tree", [wrong_law, same_random_numbers])
def test_mistakes_of_a_drafter_are_seen(tree: Callable[..., TokenTree]) -> None:
    found, limit = distance(world("block", SAMPLING), tree, 800)
    assert found > limit


@dataclass(frozen=True)
class TrustsTheDraft:
    """Emits the first drafted token untested."""

    lossless: bool = False

    def judge(
        self, tree: TokenTree, scored: Scored, history: Sequence[int], rng: np.random.Generator
    ) -> Verdict:
        return Verdict((0,), int(tree.tokens[1]), 1)


def test_a_rule_that_trusts_the_draft_is_seen() -> None:
    found, limit = distance(world("coupled", SAMPLING), chain, 800, lambda w: TrustsTheDraft())
    assert found > limit
