"""What every acceptance rule owes: the output of plain decoding, true histories, honest verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_trees import decode, drawn_tree, picked_tree, plain, rows_of, score
from toys import TableModel

from paceline.runtime.contracts import Scored
from paceline.runtime.drafters.draw import make_draw
from paceline.runtime.law import Law
from paceline.runtime.request import Request, Sampling
from paceline.runtime.rules.laws import LawMaker, LogitsError
from paceline.runtime.rules.noise import GumbelNoise
from paceline.runtime.rules.registry import RULES, make_rule
from paceline.runtime.rules.walk import Descend
from paceline.runtime.tree import TokenTree

VOCAB, HISTORY, COUNT = 6, [1, 4, 0, 1], 14
TARGET = rows_of(TableModel(VOCAB, order=2, sharpness=1.5, seed=1))
DRAFT = rows_of(TableModel(VOCAB, order=2, sharpness=1.5, seed=2))
PENALTIES = Sampling(
    repetition_penalty=1.4,
    frequency_penalty=0.6,
    presence_penalty=-0.3,
    logit_bias={2: 1.0},
    banned=frozenset({5}),
    not_before={0: 3},
    no_repeat_ngram=5,
    phrases={(1, 4): -np.inf, (4, 0, 1): 2.0},
)

temperatures = st.sampled_from([0.4, 1.0, 1.7])
samplings = st.builds(
    Sampling,
    temperature=temperatures,
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    banned=st.sampled_from([frozenset(), frozenset({3})]),
    no_repeat_ngram=st.sampled_from([0, 3]),
    phrases=st.sampled_from([{}, {(2, 1): -np.inf, (1, 0): 1.5}]),
)
trees = st.tuples(st.integers(0, 10**6), st.sampled_from(["picked", "drawn", "fused", "accepted"]))


def request(accept: str, sampling: Sampling, seed: int = 0) -> Request:
    return Request(sampling, accept, seed, 3, 2)


def proposer(kind: str, seed: int, asked: Request):
    """Drafts of one kind, good ones and bad ones; `accepted` drafts with the target's own rows."""
    rng = np.random.default_rng(seed)
    draw = make_draw(asked, VOCAB, rng)

    def propose(tokens: list[int]) -> TokenTree:
        picked = picked_tree(rng, tokens[-1], VOCAB, int(rng.integers(8)))
        if kind == "picked":
            return picked
        widths = rng.integers(1, 3, int(rng.integers(4)))
        drawn = drawn_tree(draw, TARGET if kind == "accepted" else DRAFT, tokens, widths)
        return drawn.merge(picked) if kind == "fused" else drawn

    return propose


def emitted(asked: Request, tree: tuple[int, str] | None, seed: int = 0) -> list[int]:
    propose = plain if tree is None else proposer(tree[1], tree[0], asked)
    return decode(make_rule(asked), TARGET, propose, HISTORY, COUNT, np.random.default_rng(seed))


@settings(max_examples=150, deadline=None)
@given(samplings, trees, st.integers(0, 2**70))
def test_coupled_output_is_a_function_of_the_seed_whatever_the_tree(
    sampling: Sampling, tree: tuple[int, str], seed: int
) -> None:
    asked = request("coupled", sampling, seed)
    assert emitted(asked, tree, seed=1) == emitted(asked, None, seed=2)


def test_other_rules_have_another_output_for_another_tree() -> None:
    """A negative control for the property above: only the coupled rule has it."""
    asked = request("rejection", Sampling(temperature=1.0))
    assert any(emitted(asked, (s, "drawn")) != emitted(asked, None) for s in range(5))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(RULES), trees, st.booleans())
def test_at_temperature_0_every_rule_is_greedy_decoding(
    accept: str, tree: tuple[int, str], penalties: bool
) -> None:
    asked = request(accept, PENALTIES if penalties else Sampling())
    tokens = list(HISTORY)
    for _ in range(COUNT):
        tokens.append(LawMaker(asked.sampling, 2).choice(TARGET(tokens), tokens))
    assert make_rule(asked).lossless
    assert emitted(asked, tree) == tokens[len(HISTORY) :]


def test_penalties_with_the_committed_history_alone_would_be_wrong() -> None:
    """A negative control: rows below the root need the drafted tokens in their history."""
    asked = request("coupled", replace(PENALTIES, temperature=0.5), seed=3)
    maker, noise = LawMaker(asked.sampling, 2), GumbelNoise(asked.seed, asked.number)
    tokens = list(HISTORY)

    def blind(row: np.ndarray, seen: Sequence[int]) -> int:
        return noise.choose(len(seen), maker.law(row, seen[: len(tokens)]))

    propose, different = proposer("accepted", 0, asked), 0
    while len(tokens) < 60:
        tree = propose(tokens)
        scored, rng = score(TARGET, tree, tokens), np.random.default_rng(0)
        verdict = make_rule(asked).judge(tree, scored, tokens, rng)
        different += verdict != Descend(blind).judge(tree, scored, tokens, rng)
        tokens += [*(int(tree.tokens[node]) for node in verdict.path[1:]), verdict.next_token]
    assert different > 0


@pytest.mark.parametrize("accept", RULES)
def test_a_one_node_tree_is_plain_decoding(accept: str) -> None:
    asked = request(accept, Sampling(temperature=1.0, top_k=4))
    rule, maker = make_rule(asked), LawMaker(asked.sampling, 2)
    for seed in range(30):
        rng, same = np.random.default_rng(seed), np.random.default_rng(seed)
        tree = TokenTree.root(HISTORY[-1])
        verdict = rule.judge(tree, score(TARGET, tree, HISTORY), HISTORY, rng)
        assert (verdict.path, verdict.tried) == ((0,), 0)
        if accept != "coupled":
            assert verdict.next_token == maker.law(TARGET(HISTORY), HISTORY).sample(same)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(RULES), temperatures, trees)
def test_a_verdict_is_a_path_of_the_tree_and_counts_judged_levels(
    accept: str, temperature: float, tree: tuple[int, str]
) -> None:
    asked = request(accept, Sampling(temperature=temperature))
    drafted = proposer(tree[1], tree[0], asked)(list(HISTORY))
    before = list(HISTORY)
    verdict = make_rule(asked).judge(
        drafted, score(TARGET, drafted, HISTORY), HISTORY, np.random.default_rng(tree[0])
    )
    assert before == HISTORY
    assert drafted.path(verdict.path[-1]) == verdict.path
    judged = sum(bool(drafted.children(node)) for node in verdict.path)
    assert verdict.tried == judged
    assert len(verdict.path) - 1 <= verdict.tried
    # The walk went as far as the tree allowed: no child of its end is the next token.
    assert all(drafted.tokens[c] != verdict.next_token for c in drafted.children(verdict.path[-1]))


@pytest.mark.parametrize("accept", ["rejection", "block"])
def test_a_rejected_token_is_never_emitted_again(accept: str) -> None:
    asked = request(accept, Sampling(temperature=1.0))
    rule, rng = make_rule(asked), np.random.default_rng(0)
    draw = make_draw(asked, VOCAB, np.random.default_rng(1))
    rejected = 0
    for widths in [(1, 1, 1), (2, 1), (3,)] * 100:
        tree = drawn_tree(draw, DRAFT, HISTORY, widths)
        verdict = rule.judge(tree, score(TARGET, tree, HISTORY), HISTORY, rng)
        refused = [int(tree.tokens[c]) for c in tree.children(verdict.path[-1])]
        rejected += bool(refused)
        assert verdict.next_token not in refused
    assert rejected > 50


@pytest.mark.parametrize("accept", ["coupled", "rejection", "block"])
def test_a_drafter_that_equals_the_target_loses_nothing(accept: str) -> None:
    asked = request(accept, Sampling(temperature=1.0))
    rule, rng = make_rule(asked), np.random.default_rng(0)
    draw = make_draw(asked, VOCAB, np.random.default_rng(1))
    for start in range(VOCAB):
        history = [*HISTORY, start]
        tree = drawn_tree(draw, TARGET, history, (1, 1, 1, 1))
        assert rule.judge(tree, score(TARGET, tree, history), history, rng).path == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)], ids=["greedy", "coupled"])
def test_greedy_and_coupled_rules_use_no_random_numbers(sampling: Sampling) -> None:
    rng = np.random.default_rng(5)
    before = rng.bit_generator.state
    decode(make_rule(request("coupled", sampling)), TARGET, plain, HISTORY, 5, rng)
    assert rng.bit_generator.state == before


@pytest.mark.parametrize("accept", RULES)
def test_seeded_sampling_repeats_itself(accept: str) -> None:
    asked = request(accept, Sampling(temperature=1.0))
    assert emitted(asked, (4, "fused"), seed=9) == emitted(asked, (4, "fused"), seed=9)


def test_another_seed_or_request_number_is_another_text() -> None:
    asked = request("coupled", Sampling(temperature=1.5))
    texts = [emitted(replace(asked, seed=s, number=n), None) for s, n in [(0, 0), (1, 0), (0, 1)]]
    assert texts[0] != texts[1]
    assert texts[0] != texts[2]


@pytest.mark.parametrize("accept", RULES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_stops_the_walk_that_meets_it_and_no_other(accept: str, temperature: float) -> None:
    rule = make_rule(request(accept, Sampling(temperature=temperature)))
    never = int(np.argmin(TARGET(HISTORY)))
    tree = TokenTree.picked([HISTORY[-1], never], [-1, 0], ["", "picked"])
    logits = np.array(score(TARGET, tree, HISTORY).logits)
    logits[0, never] = -1e30
    logits[1] = np.nan
    assert rule.judge(tree, Scored(logits), HISTORY, np.random.default_rng(0)).path == (0,)
    logits[0, 2] = np.nan
    with pytest.raises(LogitsError, match="the target model produced NaN logits"):
        rule.judge(tree, Scored(logits), HISTORY, np.random.default_rng(0))


def test_a_draw_from_a_law_that_lacks_it_is_refused() -> None:
    tree = TokenTree.chain([0, 3], "drawn", {0: Law(np.array([1, 2]), np.array([0.5, 0.5]))})
    for accept in ("rejection", "block"):
        rule = make_rule(request(accept, Sampling(temperature=1.0)))
        with pytest.raises(ValueError, match="token 3"):
            rule.judge(tree, score(TARGET, tree, [0]), [0], np.random.default_rng(0))


def test_an_unknown_rule_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(ValueError, match=r"'nucleus'.*coupled, rejection, block, typical"):
        make_rule(request("nucleus", Sampling()))
    with pytest.raises(ValueError, match="top_p"):
        make_rule(request("coupled", Sampling(top_p=0.0)))


def test_typical_acceptance_takes_the_likeliest_child_that_is_likely_enough() -> None:
    rule = make_rule(request("typical", Sampling(temperature=1.0)))
    row = np.log(np.array([0.02, 0.5, 0.4, 0.04, 0.03, 0.01], np.float32))
    scored = Scored(np.stack([row] * 4))
    rng = np.random.default_rng(0)
    likely = TokenTree.picked([0, 2, 1, 0], [-1, 0, 0, 0], ["", "a", "a", "a"])
    assert rule.judge(likely, scored, [0], rng).path == (0, 2)
    unlikely = TokenTree.picked([0, 5], [-1, 0], ["", "a"])
    taken = [len(rule.judge(unlikely, scored, [0], rng).path) - 1 for _ in range(300)]
    assert sum(taken) < 20
