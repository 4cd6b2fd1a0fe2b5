"""A row of logits becomes a law as the definitions say, quickly, and never out of garbage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.runtime.law import Law
from paceline.runtime.ops.vocabulary import kth_largest
from paceline.runtime.request import Sampling, validate
from paceline.runtime.rules.laws import LawMaker, LogitsError, Tally, largest, nucleus
from paceline.runtime.rules.noise import GumbelNoise

VOCAB = 40

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 39, 40, 1000]),
    top_p=st.sampled_from([1.0, 0.9, 0.4]),
    min_p=st.sampled_from([0.0, 0.02, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    frequency_penalty=st.sampled_from([0.0, 0.4, -0.2]),
    presence_penalty=st.sampled_from([0.0, 0.6]),
    logit_bias=st.sampled_from([{}, {3: 2.5, 7: -1.0}]),
    banned=st.sampled_from([frozenset(), frozenset({0, 11})]),
    not_before=st.sampled_from([{}, {4: 1, 9: 6}]),
    no_repeat_ngram=st.sampled_from([0, 0, 1, 2]),
    phrases=st.sampled_from([{}, {(5,): 1.5, (1, 2): -np.inf, (0, 3, 8): 4.0}]),
)


def definition(sampling: Sampling, row: np.ndarray, history: Sequence[int], prompt: int) -> np.ndarray:
    """The law by the book: dense, in float64, one step after the other."""
    s, x = sampling, row.copy()
    for token, bias in s.logit_bias.items():
        x[token] += np.float32(bias)
    x[list(s.banned)] = -np.inf
    for phrase, bias in s.phrases.items():
        if len(phrase) <= len(history) + 1 and [*history, phrase[-1]][-len(phrase) :] == list(phrase):
            x[phrase[-1]] += bias
    x[[token for token, least in s.not_before.items() if len(history) - prompt < least]] = -np.inf
    for token in set(history):
        x[token] = x[token] / s.repetition_penalty if x[token] > 0 else x[token] * s.repetition_penalty
    for token, count in Counter(history[prompt:]).items():
        x[token] -= s.frequency_penalty * count + s.presence_penalty
    n = s.no_repeat_ngram
    runs = {tuple(history[i : i + n]) for i in range(len(history) - n + 1)} if n else set()
    x[[token for token in range(len(x)) if tuple([*history, token][-n:]) in runs]] = -np.inf
    y = x.astype(np.float64) / s.temperature
    if 0 < s.top_k < len(y):
        y[y < np.sort(y)[-s.top_k]] = -np.inf
    p = np.exp(y - y.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    if s.top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= s.top_p]] = 0
    p[p < s.min_p * p.max()] = 0
    return p / p.sum()


@settings(max_examples=300, deadline=None)
@given(samplings, st.integers(0, 10**6), st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12))
def test_a_law_is_what_the_definitions_say(sampling: Sampling, seed: int, history: list[int]) -> None:
    row = np.random.default_rng(seed).normal(size=VOCAB).astype(np.float32) * 3
    prompt = min(3, len(history))
    maker = LawMaker(sampling, prompt)
    law = maker.law(row, history)
    assert maker.coupled(row, history, GumbelNoise(seed, 0)) == GumbelNoise(seed, 0).choose(len(history), law)
    expected = definition(sampling, row, history, prompt)
    assert np.allclose(law.dense(VOCAB), expected, atol=1e-6)
    assert set(np.flatnonzero(expected > 1e-6)) <= set(law.ids.tolist())
    assert (np.diff(law.ids) > 0).all()
    assert (law.probs > 0).all()
    assert law.probs.sum() == pytest.approx(1, abs=1e-12)
    assert law.ids.dtype == np.int64
    assert law.probs.dtype == np.float64


def test_the_order_of_the_steps_matters() -> None:
    """A negative control: top-p after top-k is another law than top-p alone."""
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert LawMaker(Sampling(temperature=1.0, top_k=2, top_p=0.5), 0).law(row, []).ids.tolist() == [0]
    assert LawMaker(Sampling(temperature=1.0, top_p=0.5), 0).law(row, []).ids.tolist() == [0, 1]


@settings(max_examples=100, deadline=None)
@given(samplings, st.lists(st.lists(st.integers(0, 7), max_size=9), min_size=2, max_size=5))
def test_a_maker_remembers_nothing_that_matters(sampling: Sampling, histories: list[list[int]]) -> None:
    used = LawMaker(sampling, 2)
    row = np.random.default_rng(0).normal(size=VOCAB).astype(np.float32)
    for history in histories:
        assert np.array_equal(used.adjust(row, history), LawMaker(sampling, 2).adjust(row, history))


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=10), max_size=6), st.integers(0, 4))
def test_a_tally_counts_the_history_it_follows(histories: list[list[int]], prompt: int) -> None:
    tally = Tally(prompt)
    for history in histories:
        tally.follow(history)
        ids, counts = tally.output()
        assert set(tally.seen().tolist()) == set(history)
        assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == Counter(history[prompt:])


def test_nothing_is_copied_where_nothing_applies_and_the_row_is_never_written() -> None:
    row = np.arange(VOCAB, dtype=np.float32)
    assert LawMaker(Sampling(), 0).adjust(row, [1]) is row
    before = row.copy()
    maker = LawMaker(
        Sampling(temperature=1.0, repetition_penalty=2.0, banned=frozenset({5}), logit_bias={1: 9.0}), 0
    )
    assert maker.adjust(row, [1, 2]) is not row
    maker.law(row, [1, 2])
    maker.choice(row, [1, 2])
    LawMaker(Sampling(temperature=1.0), 0).law(row, [])
    assert np.array_equal(row, before)


def test_the_lowest_id_wins_a_tie() -> None:
    row = np.array([0, 2, 1, 2, 2], np.float32)
    assert LawMaker(Sampling(), 0).choice(row, []) == 1
    assert LawMaker(Sampling(banned=frozenset({1})), 0).choice(row, []) == 3
    assert LawMaker(Sampling(), 0).law(row, []).ids.tolist() == [1]


def test_penalties_read_prompt_or_output_as_documented() -> None:
    row = np.array([2.0, 2.0, -2.0, 0.5], np.float32)
    repeat = LawMaker(Sampling(repetition_penalty=2.0), 2).adjust(row, [0, 2, 3])
    assert repeat.tolist() == [1.0, 2.0, -4.0, 0.25]
    counted = LawMaker(Sampling(frequency_penalty=0.5, presence_penalty=0.25), 2).adjust(row, [0, 2, 3, 3])
    assert counted.tolist() == [2.0, 2.0, -2.0, -0.75]


def test_the_history_decides_what_may_come_next() -> None:
    def best(history: list[int], **choices: object) -> int:
        return LawMaker(Sampling(**choices), 2).choice(np.array([3.0, 2, 1, 0], np.float32), history)

    assert best([0, 1], not_before={0: 1}) == 1
    assert best([0, 1, 1], not_before={0: 1}) == 0
    assert best([2, 0, 2], no_repeat_ngram=2) == 1  # 2, 0 stands there already
    assert best([2, 0, 1], no_repeat_ngram=2) == 0
    assert best([2, 0, 1], no_repeat_ngram=1) == 3
    assert best([2, 3], phrases={(2, 3, 0): -np.inf, (3, 2): 0.5}) == 1
    assert best([1, 3], phrases={(2, 3, 0): -np.inf, (3, 2): 5.0}) == 2


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "only -infinite")]
)
def test_broken_logits_are_an_error_and_not_token_zero(temperature: float, value: float, word: str) -> None:
    row = np.zeros(VOCAB, np.float32)
    row[slice(None) if value == -np.inf else 9] = value
    for sampling in (
        Sampling(temperature=temperature),
        Sampling(temperature=temperature, top_k=3, top_p=0.5),
    ):
        maker = LawMaker(sampling, 0, "the draft model")
        for method in (maker.choice, maker.law):
            with pytest.raises(LogitsError, match=f"the draft model produced {word} logits") as caught:
                method(row, [])
            assert "\n" not in str(caught.value)


def test_some_logits_may_be_minus_infinity() -> None:
    row = np.full(VOCAB, -np.inf, np.float32)
    row[[4, 8]] = [1.0, 0.0]
    assert LawMaker(Sampling(), 0).choice(row, []) == 4
    assert LawMaker(Sampling(temperature=1.0), 0).law(row, []).ids.tolist() == [4, 8]


def test_banning_everything_is_the_callers_mistake() -> None:
    maker = LawMaker(Sampling(banned=frozenset(range(VOCAB))), 0)
    with pytest.raises(ValueError, match="banned"):
        maker.choice(np.zeros(VOCAB, np.float32), [])


@pytest.mark.parametrize("temperature", [1e-3, 1e-2, 1e3])
def test_extreme_temperatures_are_the_greedy_and_the_even_law_in_large_vocabularies_too(
    temperature: float,
) -> None:
    row = np.zeros(9000, np.float32)
    row[[5, 70]] = 3
    for choices in ({}, {"top_p": 0.9}):
        maker = LawMaker(Sampling(temperature=temperature, **choices), 0)
        law = maker.law(row, [])
        assert maker.coupled(row, [], GumbelNoise(0, 0)) in law.ids
        expected = 2 if temperature < 1 else 8100 if choices else 9000
        assert abs(len(law.ids) - expected) <= (expected == 8100)  # the edge of an even law is rounding


def test_extreme_temperatures_stay_finite() -> None:
    row = np.array([1, 3, 2, 3], np.float32)
    assert LawMaker(Sampling(temperature=1e-3), 0).law(row, []).ids.tolist() == [1, 3]
    assert LawMaker(Sampling(temperature=1e3), 0).law(row, []).probs == pytest.approx([0.25] * 4, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "legal"),
    [
        ({"temperature": -0.1}, "temperature is -0.1.*0 "),
        ({"temperature": 1e-320}, "temperature is 1e-320.*0 .greedy. or between 0.001 and 1000"),
        ({"temperature": 1001.0}, "temperature is 1001.*0.001 and 1000"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -1}, "top_k is -1.*0 "),
        ({"top_k": 2.5}, "top_k is 2.5.*whole number"),
        ({"top_p": 0.0}, "top_p is 0.*at most 1"),
        ({"top_p": 1.01}, "top_p"),
        ({"min_p": -0.1}, "min_p.*between 0"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty.*between 0.01 and 100"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty is 1e-300.*between 0.01 and 100"),
        ({"frequency_penalty": -1e300}, "frequency_penalty is -1e.300.*between -1000 and 1000"),
        ({"presence_penalty": 1000.5}, "presence_penalty.*between -1000 and 1000"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"presence_penalty": float("inf")}, "presence_penalty"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram is -1.*0 .off. or more"),
        ({"not_before": {3: 1.5}}, "not_before of token 3 is 1.5.*whole number"),
        ({"not_before": {-3: 1}}, "a token of not_before is -3"),
        ({"phrases": {(): 1.0}}, "a phrase is .*one token or more"),
        ({"phrases": {(1, 2): float("nan")}}, r"the bias of the phrase \[1, 2\] is nan"),
        ({"phrases": {(1, -2): 1.0}}, "a token of phrases is -2"),
        ({"logit_bias": {3: float("-inf")}}, "logit_bias of token 3"),
        ({"logit_bias": {VOCAB: 1.0}}, "logit_bias is 40.*from 0 to 39"),
        ({"logit_bias": {1.5: 2.0}}, "logit_bias is 1.5.*whole number"),
        ({"banned": frozenset({-1})}, "banned is -1.*from 0 to 39"),
        ({"banned": frozenset({0.5})}, "banned is 0.5.*whole number"),
    ],
)
def test_choices_out_of_range_are_refused_by_name(change: dict, legal: str) -> None:
    with pytest.raises(ValueError, match=legal) as caught:
        validate(replace(Sampling(), **change), VOCAB)
    assert "\n" not in str(caught.value)


def test_every_legal_edge_is_accepted() -> None:
    validate(
        Sampling(temperature=0, top_k=0, top_p=1, min_p=1, repetition_penalty=0.01, banned=frozenset({39})),
        40,
    )
    validate(Sampling(temperature=1e-3, repetition_penalty=100, frequency_penalty=-1e3, presence_penalty=1e3))
    validate(Sampling(temperature=1e3, top_k=np.int64(3), logit_bias={np.int32(2): 1.0}), 40)


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
@pytest.mark.parametrize("repetition", [1e-2, 1e2])
@pytest.mark.parametrize("other", [-1e3, 1e3])
def test_no_legal_extreme_breaks_a_law(temperature: float, repetition: float, other: float) -> None:
    row = (np.random.default_rng(0).normal(size=3000) * 30).astype(np.float32)
    sampling = Sampling(temperature, 0, 0.9, 0.0, repetition, other, other)
    law = LawMaker(sampling, 0).law(row, [1, 1, 2])
    assert law.probs.sum() == pytest.approx(1)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 7, 300, 5000]), st.booleans())
def test_the_largest_are_found_without_sorting(seed: int, size: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    row = rng.normal(size=size).astype(np.float32)
    row = np.round(row * 3) if ties else row
    for k in {1, min(size, 3), max(1, size // 50), size}:
        order = np.argsort(-row, kind="stable")[:k]
        assert kth_largest(row, k) == row[order[-1]]
        assert largest(row, k).tolist() == order.tolist()


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 7, 300, 5000]), st.floats(0.01, 0.999), st.booleans())
def test_a_nucleus_is_the_smallest_set_that_holds_the_mass(
    seed: int, size: int, mass: float, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 5, size).astype(float) if ties else rng.exponential(size=size) ** 4 + 1e-30
    chosen = nucleus(weights, mass * weights.sum())
    inside = weights[chosen]
    total = weights.sum()
    assert inside.sum() >= mass * total * (1 - 1e-12)
    assert inside.sum() - inside.min() < mass * total * (1 + 1e-12)
    order = np.argsort(-weights, kind="stable")[: len(chosen)]
    assert sorted(order.tolist()) == chosen.tolist()


@pytest.mark.parametrize("heat", [0.3, 1.0, 30.0])
@pytest.mark.parametrize(
    "choices", [{"top_p": 0.9}, {"top_p": 0.7, "top_k": 3000}, {"top_p": 0.99, "min_p": 0.01}]
)
def test_a_nucleus_in_a_large_vocabulary_is_the_same(choices: dict, heat: float) -> None:
    sampling = Sampling(temperature=heat, **choices)
    for seed in range(5):
        row = (np.random.default_rng(seed).normal(size=20000) * 5).astype(np.float32)
        law = LawMaker(sampling, 0).law(row, [])
        expected = definition(sampling, row, [], 0)
        # The edge of the nucleus may move by a token whose weight is rounding in the sum.
        assert len(set(np.flatnonzero(expected)) ^ set(law.ids.tolist())) <= 1
        assert np.allclose(law.dense(20000), expected, atol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 1.0), st.sampled_from([6, 9000]))
def test_the_excess_of_a_law_is_what_the_other_does_not_cover(seed: int, scale: float, size: int) -> None:
    rng = np.random.default_rng(seed)

    def law() -> Law:
        ids = np.sort(rng.choice(size, size // 2 + int(rng.integers(3)), replace=False))
        probs = rng.exponential(size=len(ids))
        return Law(ids, probs / probs.sum())

    p, q = law(), law()
    rest = np.maximum(scale * p.dense(size) - q.dense(size), 0)
    mass, left = p.excess(q, scale)
    assert mass == pytest.approx(rest.sum(), abs=1e-12)
    assert (left is None) == (mass < 1e-12)
    if left is not None:
        assert np.allclose(left.dense(size), rest / rest.sum(), atol=1e-12)


def test_equal_laws_leave_nothing_and_a_certain_token_leaves_nothing() -> None:
    law = Law(np.array([1, 4]), np.array([0.5, 0.5]))
    assert law.excess(law) == (0.0, None)
    rest = law.without(4)
    assert rest is not None
    assert rest.ids.tolist() == [1]
    assert rest.without(1) is None
