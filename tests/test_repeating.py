"""Answers that go round in circles are told apart from others, and a remedy is named that works."""

from __future__ import annotations

import pytest
from command_line import call

from paceline.repeating import repeat_words, repeats
from paceline.runtime.request import Sampling


@pytest.mark.parametrize(
    ("beginning", "period", "times", "round_"),
    [
        (0, 1, 48, True), (9, 1, 48, True), (9, 1, 47, False), (200, 7, 8, True), (3, 20, 4, True),
        (3, 20, 3, False), (0, 64, 4, True), (0, 65, 4, False), (400, 0, 0, False),
    ],
)  # fmt: skip
def test_what_is_said_over_and_over_is_seen(beginning: int, period: int, times: int, round_: bool) -> None:
    said = [*range(1000, 1000 + beginning), *list(range(period)) * times]
    assert repeats(said) is round_
    assert not repeats([*said, 5000])


def test_the_remedy_is_one_that_is_not_in_use() -> None:
    assert repeat_words(Sampling(), "--") == (
        "the answer repeats itself: --temp 0.8 or --repeat-penalty 1.1 works against that"
    )
    assert repeat_words(Sampling(0.8, repetition_penalty=1.1), "/set ") == (
        "the answer repeats itself: /set repeat-penalty 1.2 works against that"
    )


LOOP = ("--temp", "0", "--repeat-penalty", "1", "--frequency-penalty", "0")
"""How the storyteller goes round in circles."""


def test_an_answer_that_goes_round_in_circles_gets_a_hint() -> None:
    done = call("run", "--raw", *LOOP, "no no no no no no no no no no no no no no no no")
    assert done.code == 0
    assert "the answer repeats itself: --temp 0.8 or" in done.err
