from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.memory.cache import KeyValueCache
from paceline.memory.ladder import Ladder, rungs
from paceline.memory.model import Choice, Measured, Overheads, Sizes, terms
from paceline.memory.plan import SLACK, BudgetError, Planner, Speeds, Wish
from paceline.memory.room import Room
from paceline.memory.size import parse_size, show_size

TARGET = Sizes(
    layers=24,
    kv_heads=2,
    head_dim=64,
    hidden=896,
    width=9728,
    vocab=151936,
    context=32768,
    weights=255_000_000,
    graph=120_000,
)
DRAFT = Sizes(
    layers=4,
    kv_heads=2,
    head_dim=32,
    hidden=256,
    width=1408,
    vocab=151936,
    context=2048,
    weights=30_000_000,
    graph=20_000,
)
EVERYTHING = Room(nodes=16, depth=16)
OVERHEADS = Overheads(70_000_000, Measured(12_000_000, 30_000.0), (Measured(1_000_000, 5_000.0),), 6_000_000)


def speeds(model: float = 0.7, free: float = 0.2) -> Speeds:
    return Speeds(lambda rows: 1 + 0.03 * (rows - 1), 0.1, model, free, 0.03)


def planner(draft: Sizes | None = DRAFT, **chances: float) -> Planner:
    drafts = [] if draft is None else [draft]
    overheads = replace(OVERHEADS, drafts=OVERHEADS.drafts[: len(drafts)])
    return Planner(TARGET, drafts, lambda *_: overheads, speeds(**chances))


def wish(context: int = 4096) -> Wish:
    return Wish(context=context, cache="fp16", room=EVERYTHING)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("900MB", 900_000_000),
        ("1.5 GiB", 3 * 2**29),
        ("300000", 300_000),
        ("64 kib", 65536),
        ("2g", 2 * 10**9),
    ],
)
def test_sizes_are_decimal_unless_they_say_otherwise(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-5MB", "0", "12 parsecs", "1e9", "9" * 15 + "GB", "١MB", "1MB2"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="900MB"):
        parse_size(text)


@given(st.integers(1, 2**45))
def test_a_shown_size_suffices_when_it_is_typed_in(size: int) -> None:
    assert parse_size(show_size(size)) >= size


@settings(max_examples=60, deadline=None)
@given(
    st.integers(100_000_000, 2_000_000_000),
    st.integers(128, 32768),
    st.sampled_from(["fp32", "fp16", "int8"]),
)
def test_a_plan_never_exceeds_its_budget_and_never_touches_context_or_precision(
    budget: int, context: int, cache: str
) -> None:
    asked = replace(wish(context), cache=cache)  # type: ignore[arg-type]
    try:
        made = planner().plan(asked, budget)
    except BudgetError:
        assert planner().plan(asked, None).least > budget
        return
    assert made.total <= budget
    assert made.choice.context == context
    assert made.choice.cache == cache
    assert made.least <= made.total


def test_more_memory_is_never_predicted_to_be_slower() -> None:
    made = planner()
    least = made.plan(wish(), None).least
    gains = [made.plan(wish(), least + extra).gain for extra in range(0, 200_000_000, 10_000_000)]
    assert gains == sorted(gains)
    assert gains[0] < 1.05 < gains[-1]


def test_the_useful_bound_is_where_a_gain_of_five_percent_is_first_predicted() -> None:
    made = planner()
    useful = made.plan(wish(), None).useful
    assert useful is not None
    assert made.plan(wish(), useful).gain > 1.05
    assert made.plan(wish(), useful - 1).gain <= 1.05


def test_without_acceptance_there_is_no_useful_bound() -> None:
    assert (
        planner(None, free=0.0).plan(replace(wish(), room=replace(EVERYTHING, models=False)), None).useful
        is None
    )


def test_a_refusal_names_a_context_that_really_fits() -> None:
    made = planner()
    least = made.plan(wish(4096), None).least
    with pytest.raises(BudgetError) as refused:
        made.plan(wish(4096), least - 10_000_000)
    line = str(refused.value)
    found = re.search(r"context (\d+) instead of 4096", line)
    assert found
    assert "\n" not in line
    longest = wish(int(found[1]))
    assert made.plan(longest, least - 10_000_000).total <= least - 10_000_000
    assert made.least(longest) + SLACK <= least - 10_000_000
    assert made.least(replace(longest, context=longest.context + 1)) + SLACK > least - 10_000_000


def test_a_refusal_names_a_smaller_cache_and_a_context_where_neither_is_enough() -> None:
    made = planner()
    budget = made.least(replace(wish(300), cache="int8")) + SLACK
    asked = replace(wish(32768), cache="fp32", smaller=("fp16", "int8"))
    with pytest.raises(BudgetError) as refused:
        made.plan(asked, budget)
    assert str(refused.value).endswith("; an int8 cache with context 300 instead of 32768 would fit")
    assert made.plan(replace(asked, context=300, cache="int8"), budget)


def test_a_refusal_names_a_smaller_cache_that_really_fits_where_the_bundle_has_one() -> None:
    made = planner()
    budget = made.plan(replace(wish(32768), cache="int8"), None).least + 1_000_000
    asked = replace(wish(32768), cache="fp32")
    with pytest.raises(BudgetError, match=r"an int8 cache or context \d+ instead of 32768"):
        made.plan(replace(asked, smaller=("fp16", "int8")), budget)
    with pytest.raises(BudgetError) as refused:
        made.plan(asked, budget)
    assert "int8" not in str(refused.value)


@pytest.mark.parametrize("start", [0, 60_000_000])
@pytest.mark.parametrize("context", [4096, 128, 16])
def test_a_hopeless_budget_is_told_what_would_do_in_bytes_of_its_own_kind(start: int, context: int) -> None:
    with pytest.raises(BudgetError) as refused:
        planner().plan(wish(context), 90_000_000, start)
    line = str(refused.value)
    found = re.search(r"give it (\d+MB)(?:, or (\d+MB) with context (\d+))?$", line)
    assert found
    assert line.startswith(show_size(90_000_000 - start))
    assert planner().plan(wish(context), parse_size(found[1]) + start).total <= parse_size(found[1]) + start
    assert (found[2] is not None) == (context > 128)
    if found[2]:
        assert planner().plan(wish(int(found[3])), parse_size(found[2]) + start)


def test_adapters_are_counted_for_every_session() -> None:
    bare, choice = planner(), Choice(context=512, cache="fp16", chunk=64, room=EVERYTHING)
    with_some = Planner(replace(TARGET, adapters=4_096_000), [DRAFT], lambda *_: OVERHEADS, speeds())
    assert sum(t.bytes for t in with_some.terms(choice) if t.what == "adapters") == 4_096_000
    assert with_some.total(choice) - bare.total(choice) >= 4_096_000
    made = with_some.plan(wish(), None)
    assert made.shared_by(2).total - made.total >= 4_096_000


def test_two_draft_models_are_both_counted() -> None:
    overheads = replace(OVERHEADS, drafts=OVERHEADS.drafts * 2)
    both = Planner(TARGET, [DRAFT, DRAFT], lambda *_: overheads, speeds())
    one = Planner(TARGET, [DRAFT], lambda *_: OVERHEADS, speeds())
    choice = Choice(context=4096, cache="fp16", chunk=64, room=Room(nodes=8, depth=8, tables=False))
    assert both.total(choice) - one.total(choice) > DRAFT.weights


def test_a_named_drafter_is_not_quietly_left_out() -> None:
    named = replace(wish(), room=replace(EVERYTHING, tables=False), plain=False)
    made = planner()
    least_without = made.plan(wish(), None).least
    with pytest.raises(BudgetError, match="with drafter auto or none it would fit"):
        made.plan(named, least_without + 1_000_000)
    assert made.plan(named, made.plan(named, None).least).choice.room.models


def test_the_terms_of_the_cache_are_what_a_cache_really_takes() -> None:
    choice = Choice(
        context=1000, cache="int8", chunk=64, room=Room(nodes=8, depth=4, tables=False, draft_rows=300)
    )
    found = {(t.part, t.what): t.bytes for t in terms(choice, TARGET, [DRAFT], OVERHEADS)}
    cache = KeyValueCache(TARGET.layers, TARGET.kv_heads, 1000, TARGET.head_dim, "int8")
    assert 0 <= found["target", "cache"] - cache.bytes < 2 * TARGET.layers * 4096
    assert found["target", "logits"] >= 9 * TARGET.vocab * 4
    assert found["drafter", "cache"] >= 300 * DRAFT.row("int8")


def test_the_ladder_goes_down_in_the_promised_order() -> None:
    steps = list(rungs(Room(nodes=16, depth=4), window=True))
    assert [(c.nodes, c.depth, c.models, c.draft_rows) for c in steps] == [
        (16, 4, True, None),
        (8, 4, True, None),
        (4, 4, True, None),
        (4, 2, True, None),
        (4, 2, True, 256),
        (4, 2, False, 256),
        (0, 0, False, 256),
    ]


def test_the_ladder_climbs_only_well_below_the_limit_and_not_at_once() -> None:
    ladder = Ladder(Room(nodes=16, depth=4), window=False, limit=100, low=97)
    assert ladder.look(101)
    assert ladder.ceiling.nodes == 8
    assert not any(ladder.look(98) for _ in range(50))
    looks = [ladder.look(95) for _ in range(4)]
    assert looks == [False, False, False, True]
    assert ladder.ceiling.nodes == 16


def test_a_ladder_that_climbed_in_vain_waits_longer_before_it_tries_again() -> None:
    ladder, waits = Ladder(Room(nodes=16, depth=4), window=False, limit=100, low=97), []
    for _ in range(9):
        assert ladder.look(101)
        looks = 1
        while not ladder.look(90):
            looks += 1
        waits.append(looks)
    assert waits == [4, 8, 16, 32, 64, 128, 256, 256, 256]


@given(st.lists(st.integers(0, 200), max_size=200))
def test_a_ladder_never_leaves_its_rungs(used: list[int]) -> None:
    ladder = Ladder(Room(nodes=16, depth=4, tables=False), window=True, limit=100, low=90)
    allowed = set(rungs(Room(nodes=16, depth=4, tables=False), window=True))
    for size in used:
        ladder.look(size)
        assert ladder.ceiling in allowed
