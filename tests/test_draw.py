"""How a draft model's row becomes children: the right kind for each rule, and what each promises."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from paceline.runtime.contracts import Scored
from paceline.runtime.drafters.draw import make_draw
from paceline.runtime.law import Law
from paceline.runtime.request import Request, Sampling
from paceline.runtime.rules.laws import LawMaker
from paceline.runtime.rules.noise import GumbelNoise
from paceline.runtime.rules.registry import make_rule
from paceline.runtime.tree import TokenTree

HISTORY = [3, 1, 2]
ROW = np.log(np.array([0.05, 0.4, 0.25, 0.2, 0.1], np.float32))


def draw(accept: str, temperature: float = 1.0, picks: bool = False, vocab: int = 5, **choices: object):
    sampling = Sampling(temperature=temperature, **choices)
    return make_draw(Request(sampling, accept, 7, 0, 1), vocab, np.random.default_rng(0), picks=picks)


@pytest.mark.parametrize(
    ("accept", "temperature", "picks", "sampled"),
    [
        ("coupled", 1.0, False, False),
        ("rejection", 1.0, False, True),
        ("block", 1.0, False, True),
        ("typical", 1.0, False, False),
        ("rejection", 1.0, True, False),
        ("block", 1.0, True, False),
        ("rejection", 0.0, False, False),
    ],
)
def test_only_rules_that_test_draws_get_draws(
    accept: str, temperature: float, picks: bool, sampled: bool
) -> None:
    chosen = draw(accept, temperature, picks)
    children = chosen.children(ROW, HISTORY, 3)
    assert chosen.sampled is sampled
    assert (children.law is not None) is sampled
    assert len(set(children.tokens)) == len(children.tokens) == len(children.scores) == 3
    assert all(0 < score <= 1 for score in children.scores)


def test_greedy_picks_are_the_likeliest_and_their_scores_fall() -> None:
    children = draw("coupled", 0.0).children(ROW, HISTORY, 3)
    assert children.tokens == (1, 2, 3)
    assert sorted(children.scores, reverse=True) == list(children.scores)


def test_the_score_of_a_draw_does_not_depend_on_what_was_drawn() -> None:
    chosen = draw("rejection")
    seen = {(c.tokens, c.scores) for c in (chosen.children(ROW, HISTORY, 2) for _ in range(50))}
    assert len({tokens for tokens, _ in seen}) > 5
    assert len({scores for _, scores in seen}) == 1


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.4])
def test_scores_are_the_chance_of_acceptance_where_logits_differ_by_the_assumed_noise(
    temperature: float,
) -> None:
    """Calibration on a target that is the drafter plus Gumbel noise of the width that the scores assume."""
    rng = np.random.default_rng(1)
    promised, kept = [], []
    for seed in range(1500):
        row = (rng.normal(size=50) * 3).astype(np.float32)
        target = row + (0.7 * rng.gumbel(size=50)).astype(np.float32)
        request = Request(Sampling(temperature=temperature), "coupled", seed, 0, 1)
        children = make_draw(request, 50, rng).children(row, HISTORY, 1)
        tree = TokenTree.picked([HISTORY[-1], children.tokens[0]], [-1, 0], ["", "a"])
        verdict = make_rule(request).judge(tree, Scored(np.stack([target] * 2)), HISTORY, rng)
        promised.append(children.scores[0])
        kept.append(len(verdict.path) - 1)
    noise = np.sqrt(np.mean(np.array(promised) * (1 - np.array(promised))) / len(kept))
    assert abs(np.mean(promised) - np.mean(kept)) < 5 * noise
    assert np.corrcoef(promised, kept)[0, 1] > 0.25


def test_a_greedy_pick_sees_penalties_bans_and_the_lowest_id_of_a_tie() -> None:
    children = draw("coupled", 0.0, banned=frozenset({1}), repetition_penalty=5.0).children(ROW, HISTORY, 2)
    assert children.tokens == (4, 0)
    assert draw("coupled", 0.0).children(np.zeros(5, np.float32), HISTORY, 3).tokens == (0, 1, 2)


def test_coupled_picks_win_with_the_noise_of_the_target() -> None:
    noise, law = GumbelNoise(7, 0), LawMaker(Sampling(temperature=1.0), 1).law(ROW, HISTORY)
    for length in range(1, 60):
        history = [0] * length
        tokens = draw("coupled").children(ROW, history, 2).tokens
        assert tokens[0] == noise.choose(length, law)
        assert tokens[1] == np.argsort(-np.log(law.probs) - noise.at(length, law.ids))[1]


def test_draws_are_without_replacement_from_the_law_that_comes_with_them() -> None:
    chosen = draw("rejection", temperature=0.8)
    expected = LawMaker(Sampling(temperature=0.8), 1).law(ROW, HISTORY)
    size, pairs = 6000, Counter[tuple[int, ...]]()
    for _ in range(size):
        children = chosen.children(ROW, HISTORY, 2)
        assert children.law is not None
        pairs[children.tokens] += 1
    assert np.allclose(children.law.probs, expected.probs)

    def chance(one: int, two: int) -> float:
        rest: Law | None = expected.without(one)
        assert rest is not None
        return expected.of(one) * rest.of(two)

    every = list(permutations(range(5), 2))
    statistic = sum((pairs[p] - size * chance(*p)) ** 2 / (size * chance(*p)) for p in every)
    assert statistic < 19 + 5 * np.sqrt(2 * 19)
    with_replacement = sum(
        (pairs[p] - size * expected.of(p[0]) * expected.of(p[1])) ** 2
        / (size * expected.of(p[0]) * expected.of(p[1]))
        for p in every
    )
    assert with_replacement > 19 + 5 * np.sqrt(2 * 19)


def test_a_law_with_fewer_tokens_gives_fewer_children() -> None:
    assert len(draw("rejection", top_k=2).children(ROW, HISTORY, 4).tokens) == 2
    assert len(draw("coupled", top_k=2).children(ROW, HISTORY, 4).tokens) == 2


@pytest.mark.parametrize("accept", ["coupled", "rejection", "typical"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_padding_beyond_the_shared_vocabulary_is_never_proposed(accept: str, temperature: float) -> None:
    row = np.append(ROW, np.float32([50.0, 60.0]))
    chosen = draw(accept, temperature)
    for length in range(1, 30):
        assert max(chosen.children(row, [0] * length, 3).tokens) < 5


def test_a_drafter_may_know_fewer_ids_than_history_bans_and_biases() -> None:
    choices = {
        "banned": frozenset({8}),
        "logit_bias": {9: 1.0},
        "repetition_penalty": 1.5,
        "presence_penalty": 1.0,
    }
    for temperature in (0.0, 1.0):
        assert draw("coupled", temperature, **choices).children(ROW, [0, 7, 9, 4], 2).tokens


@pytest.mark.parametrize("accept", ["coupled", "rejection", "typical"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_draft_row_proposes_nothing(accept: str, temperature: float) -> None:
    row = ROW.copy()
    row[2] = np.nan
    assert draw(accept, temperature).children(row, HISTORY, 3).tokens == ()
