"""What controllers learn is kept with the loaded bundle."""

from __future__ import annotations

from dataclasses import replace

import pytest
from worlds import GREEDY, World, arms, best_fixed, curve

from paceline.runtime.control.controller import Controller
from paceline.runtime.control.lessons import Book


def test_a_second_controller_begins_with_what_the_first_learnt() -> None:
    book = Book()
    world = World(lambda name, at: 0.85 if name == "chain" else 0.0)
    first = Controller(arms("chain", "lookup"), curve(), 16, book=book)
    world.answer(first, 600)
    world.ran.clear()
    second = Controller(arms("chain", "lookup"), curve(), 16, book=book)
    world.answer(second, 200)
    assert second.chosen == "chain"
    assert world.ran["chain"] > 10 * world.ran.get("none", 0)
    alone = World(lambda name, at: 0.85 if name == "chain" else 0.0)
    stranger = Controller(arms("chain", "lookup"), curve(), 16)
    assert alone.answer(stranger, 200)[-1] > world.spent


def test_a_controller_with_fewer_arms_leaves_what_is_known_of_the_others() -> None:
    book = Book()
    World(lambda name, at: 0.85).answer(Controller(arms("chain", "lookup"), curve(), 16, book=book), 600)
    before = book.newest()
    World(lambda name, at: 0.1).answer(Controller(arms("lookup"), curve(), 16, book=book), 600)
    after = book.newest()
    assert before is not None
    assert after is not None
    assert after.arms["chain"] == before.arms["chain"]
    assert after.arms["lookup"] != before.arms["lookup"]


def test_what_one_has_read_of_its_text_is_nobody_elses() -> None:
    book = Book()
    first, second = (Controller(arms("chain"), curve(), 16, book=book) for _ in range(2))
    World(lambda name, at: 0.85).answer(first, 600)
    assert first._arms[0].seen > 300
    second.begin(replace(GREEDY, prompt_length=50), 0)
    assert second._arms[0].seen == 0
    assert second._arms[0].weight > 0


def test_the_curve_of_a_second_controller_knows_how_busy_the_machine_is() -> None:
    book = Book()
    first = Controller(arms("chain"), curve(), 16, book=book)
    World(lambda name, at: 0.0, lambda at: 3.0).answer(first, 800)
    second = Controller(arms("chain"), curve(), 16, book=book)
    second.begin(GREEDY, 0)
    assert second._known.curve.seconds(0, 10) == pytest.approx(3.0, rel=0.1)
    assert best_fixed(["chain"], lambda name: 0.0) == 1.0
