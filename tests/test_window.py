from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from command_line import BUNDLE, call
from hypothesis import given
from hypothesis import strategies as st

from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.loading import load
from paceline.runtime.model.window import window
from paceline.runtime.request import Sampling
from paceline.runtime.session import Session

PROMPT = "Once upon a time there was a dog"
ENDLESS = Sampling(banned=frozenset({0, 1, 2, 3}), repetition_penalty=1.1)
"""The storyteller's way to end is banned, so that every text outgrows its context."""


@given(st.integers(0, 5000), st.integers(1, 600))
def test_a_window_fits_and_holds_the_first_and_the_last_tokens(length: int, capacity: int) -> None:
    tokens = list(range(length))
    place = window(length, capacity)
    kept = place.of(tokens)
    assert len(kept) <= capacity
    assert kept[: place.sinks] == tokens[: place.sinks]
    if length:
        assert kept[-1] == tokens[-1]
    if length > capacity:
        assert len(kept) >= capacity // 2


@given(st.integers(8, 300))
def test_a_window_moves_in_steps_of_half_the_capacity(capacity: int) -> None:
    for first, second in pairwise(window(length, capacity) for length in range(6 * capacity)):
        step, sinks = max((capacity - second.sinks) // 2, 1), second.sinks - first.sinks
        assert second.number - first.number in (0, 1)
        assert second.start - first.start == sinks + step * (second.number - first.number)


@given(st.integers(1, 3000), st.integers(8, 300), st.data())
def test_the_place_of_a_kept_token_is_where_it_stands(
    length: int, capacity: int, data: st.DataObject
) -> None:
    tokens = list(range(length))
    place = window(length, capacity)
    kept = place.of(tokens)
    index = data.draw(st.sampled_from(kept))
    assert kept[place.place(index)] == index


def answer(drafter: str, sampling: Sampling, tokens: int = 260, **flags: object) -> list[int]:
    with load(BUNDLE, drafter=drafter, context=96, overflow="slide", **flags) as session:  # type: ignore[arg-type]
        events = list(session.generate(PROMPT, max_tokens=tokens, sampling=sampling, seed=5))
        assert session.stats.slides > 1
    return [e.token for e in events if e.token is not None]


@pytest.mark.parametrize("drafter", ["chain", "tree", "lookup,recycle", "auto"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_sliding_answer_is_the_same_for_every_drafter(drafter: str, temperature: float) -> None:
    sampling = Sampling(temperature, banned=ENDLESS.banned, repetition_penalty=1.1)
    plain = answer("none", sampling)
    assert len(plain) == 260
    assert answer(drafter, sampling) == plain


def test_a_text_that_slid_goes_on_as_in_a_fresh_session_that_is_given_all_of_it() -> None:
    sampling = Sampling(banned=ENDLESS.banned)
    with load(BUNDLE, drafter="none", context=96, overflow="slide") as session:
        prompt = session.text.encode(PROMPT)
        tokens = [
            e.token
            for e in session.generate(prompt, max_tokens=250, sampling=sampling)
            if e.token is not None
        ]
    with load(BUNDLE, drafter="none", context=96, overflow="slide") as fresh:
        events = fresh.generate(prompt + tokens[:170], max_tokens=80, sampling=sampling)
        assert [e.token for e in events if e.token is not None] == tokens[170:]


def test_a_longer_history_reuses_the_window_that_it_shares_with_the_last_answer() -> None:
    with load(BUNDLE, drafter="chain", context=96, overflow="slide") as session:
        prompt = session.text.encode(PROMPT)
        first = [
            e.token for e in session.generate(prompt, max_tokens=120, sampling=ENDLESS) if e.token is not None
        ]
        list(session.generate(prompt + first, max_tokens=2, sampling=ENDLESS))
        assert session.stats.reused_tokens > 20


def test_without_slide_a_full_context_still_ends_with_length() -> None:
    with load(BUNDLE, drafter="auto", context=96) as session:
        events = list(session.generate(PROMPT, sampling=ENDLESS))
        assert events[-1].finish_reason == "length"
        assert session.stats.slides == 0


def test_a_draft_model_with_a_short_cache_goes_on_drafting_beyond_it() -> None:
    def rounds(session: Session) -> tuple[list[int], float]:
        events = list(session.generate(PROMPT, max_tokens=200, sampling=ENDLESS))
        return [e.token for e in events if e.token is not None], session.stats.tokens_per_round

    with load(BUNDLE, drafter="none") as session:
        plain, _ = rounds(session)
    with load(BUNDLE, drafter="chain") as session:
        session._workshop._models["small"].narrow(48)
        session._drafting = replace(session._drafting, control=FixedLimit(4, 4))  # whatever the clock says
        short, per_round = rounds(session)
    assert short == plain
    assert per_round > 1.4


def test_the_command_says_once_that_the_context_slid_and_names_the_flag_where_it_could_have() -> None:
    text = PROMPT + " and a cat" * 60
    done = call("run", text, "--raw", "-c", "64", "--overflow", "slide", "--max-tokens", "8")
    assert done.code == 0
    assert done.err.count("the context of 64 tokens is full") == 1
    stopped = call("run", text, "--raw", "-c", "64")
    assert stopped.code == 1
    assert "--overflow slide" in stopped.err
