"""From a drafter's own estimates to how often its tokens are accepted, and how drafters stop by it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from draft_models import VOCAB, draft_model
from hypothesis import given
from hypothesis import strategies as st

from paceline.runtime.contracts import Drafter, DraftLimit, Outcome, Scored, Verdict
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.drafters.draw import Acceptance, isotonic
from paceline.runtime.drafters.lookup import PromptLookup
from paceline.runtime.drafters.recycle import Recycle
from paceline.runtime.drafters.suffix import Suffix
from paceline.runtime.drafters.tree import TreeModel
from paceline.runtime.request import Request, Sampling
from paceline.runtime.tree import TokenTree

GREEDY = Request(Sampling(), "coupled", 0, 0, 1)
SAMPLED = Request(Sampling(temperature=1.0), "rejection", 0, 0, 1)


def outcome(estimates: list[float], accepted: int, source: str = "a") -> Outcome:
    tree = TokenTree.chain([0] * (len(estimates) + 1), source, scores=[1.0, *estimates])
    verdict = Verdict(tuple(range(accepted + 1)), 0, len(estimates))
    return Outcome(tree, Scored(np.zeros((len(tree), 2), np.float32)), verdict)


def taught(pairs: list[tuple[float, float]], rounds: int = 600, source: str = "a") -> Acceptance:
    """Estimates and how often they come true."""
    known, rng = Acceptance(), np.random.default_rng(0)
    for _ in range(rounds):
        for estimate, truth in pairs:
            known.learn(outcome([estimate], int(rng.random() < truth), source), "a")
    return known


def test_an_estimate_counts_as_it_came_true() -> None:
    known = taught([(0.95, 0.6), (0.55, 0.3), (0.15, 0.1)])
    assert known.chance(1, 0.95) == pytest.approx(0.6, abs=0.12)
    assert known.chance(1, 0.55) == pytest.approx(0.3, abs=0.12)
    assert known.chance(1, 0.15) == pytest.approx(0.1, abs=0.12)


def test_before_anything_came_an_estimate_counts_as_it_is() -> None:
    known = Acceptance()
    for estimate in (0.0, 0.31, 0.5, 0.99, 1.0):
        assert known.chance(1, estimate) == pytest.approx(estimate, abs=0.06)


def test_levels_are_told_apart() -> None:
    known = Acceptance()
    for _ in range(300):
        known.learn(outcome([0.75, 0.75], 1), "a")
    assert known.chance(1, 0.75) > 0.9
    assert known.chance(2, 0.75) < 0.2
    assert known.usual(1) > 0.9 > 0.2 > known.usual(2)


def test_what_another_drafter_proposed_or_a_prompt_held_teaches_nothing() -> None:
    known = taught([(0.95, 0.0)], source="b")
    known.learn(outcome([0.95], 0, "b,a"), "a")
    prompt = outcome([0.95], 0)
    for _ in range(100):
        known.learn(Outcome(prompt.tree, Scored(np.zeros((0, 2), np.float32)), prompt.verdict), "a")
    assert known.chance(1, 0.95) == Acceptance().chance(1, 0.95)


def test_what_changed_is_learnt_again() -> None:
    known = taught([(0.85, 1.0)])
    for _ in range(600):
        known.learn(outcome([0.85], 0), "a")
    assert known.chance(1, 0.85) < 0.3


counts = st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 50)), min_size=1, max_size=12)


@given(counts)
def test_pooling_never_falls_and_keeps_the_sum(pairs: list[tuple[float, float]]) -> None:
    true, tried = [min(a, b) for a, b in pairs], [b for _, b in pairs]
    table = isotonic(true, tried)
    assert len(table) == len(pairs)
    assert all(a <= b + 1e-9 for a, b in pairwise(table))
    assert sum(p * n for p, n in zip(table, tried, strict=True)) == pytest.approx(sum(true))


# -- stopping by price -----------------------------------------------------------------------------------------

TEXT = [1, 2, 3, 4, 5, 0] * 6
MAKERS = {
    "chain": lambda: ChainModel(draft_model(), VOCAB),
    "tree": lambda: TreeModel(draft_model(), VOCAB, frontier=3),
    "lookup": PromptLookup,
    "suffix": Suffix,
}


def size(drafter: Drafter, limit: DraftLimit) -> int:
    return len(drafter.propose(TEXT, limit)) - 1


@pytest.mark.parametrize("name", MAKERS)
def test_the_dearer_nodes_are_the_fewer_are_drafted(name: str) -> None:
    drafter = MAKERS[name]()
    drafter.begin(GREEDY)
    prices = (0.01, 0.2, 0.5, 0.9, 2.0)
    sizes = [size(drafter, DraftLimit(12, 6, step_price=p / 4, node_price=p)) for p in prices]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 0
    assert sizes[-1] == 0


@pytest.mark.parametrize("name", ["chain", "tree"])
def test_dear_passes_make_a_draft_short(name: str) -> None:
    drafter = MAKERS[name]()
    drafter.begin(GREEDY)
    levels = []
    for price in (0.0, 0.3, 5.0):
        tree = drafter.propose(TEXT, DraftLimit(12, 5, step_price=price, node_price=0.001))
        levels.append(int(tree.depths().max()))
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > levels[-1] == 1


def test_a_drawn_token_stays_whatever_it_costs() -> None:
    drafter = MAKERS["chain"]()
    drafter.begin(SAMPLED)
    for seed in range(20):
        tree = drafter.propose([*TEXT, seed % VOCAB], DraftLimit(8, 5, step_price=9.0, node_price=9.0))
        assert len(tree) == 2
        assert tree.draw.tolist() == [-1, 0]


@pytest.mark.parametrize("name", ["chain", "tree", "lookup"])
def test_where_the_output_depends_on_the_draft_earlier_answers_do_not_choose_it(name: str) -> None:
    old, new = MAKERS[name](), MAKERS[name]()
    limit = DraftLimit(8, 5, step_price=0.2, node_price=0.1)
    old.begin(GREEDY)
    for _ in range(60):
        tree = old.propose(TEXT, DraftLimit(8, 5))
        old.observe(Outcome(tree, Scored(np.zeros((len(tree), VOCAB), np.float32)), Verdict((0,), 1, 1)))
    for drafter in (old, new):
        drafter.begin(SAMPLED)
    one, other = old.propose(TEXT, limit), new.propose(TEXT, limit)
    assert one.tokens.tolist() == other.tokens.tolist()


def test_prices_by_node_come_before_the_price_of_the_rest() -> None:
    limit = DraftLimit(9, 9, node_price=0.5, node_prices=(0.1, 0.2))
    assert [limit.price(n) for n in (1, 2, 3, 9)] == [0.1, 0.2, 0.5, 0.5]
    assert limit.priced
    assert not DraftLimit(9, 9, step_price=1.0).priced


def test_recycling_keeps_to_prices() -> None:
    drafter, rng = Recycle(VOCAB), np.random.default_rng(0)
    for token in range(VOCAB):
        tree = TokenTree.root(token)
        logits = rng.normal(size=(1, VOCAB)).astype(np.float32) * 9
        drafter.observe(Outcome(tree, Scored(logits), Verdict((0,), (token + 1) % VOCAB, 0)))
    sizes = [size(drafter, DraftLimit(12, 4, node_price=p)) for p in (0.01, 0.2, 0.9)]
    assert sizes[0] > sizes[1] > sizes[2] == 0


# -- scores travel with the tree -------------------------------------------------------------------------------


def test_scores_survive_pruning_and_merging() -> None:
    one = TokenTree.picked([0, 1, 2, 3], [-1, 0, 1, 0], ["", "a", "a", "a"], [1.0, 0.9, 0.8, 0.3])
    assert one.prune([1, 3]).scores == (1.0, 0.9, 0.3)
    other = TokenTree.picked([0, 1, 5], [-1, 0, 1], ["", "b", "b"])
    assert one.merge(other).scores == (1.0, 0.9, 0.8, 0.3, 0.0)
    assert other.merge(one).scores == (0.0, 0.0, 0.0, 0.8, 0.3)
    assert other.merge(other).scores == ()
