"""Which draft passes are worth their time beside the target's pass."""

from __future__ import annotations

import time
from math import inf
from threading import Thread

import numpy as np
import pytest

from paceline.runtime.beside import Meanwhile, Worker
from paceline.runtime.contracts import Early
from paceline.runtime.drafters.pace import Pace
from paceline.runtime.tree import TokenTree

EARLY = Early(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32))


def known() -> Pace:
    """A pass of one row takes 1, one of four 2.2, as a draft model of 59 million parameters had it."""
    pace = Pace()
    pace.learn(1, 1.0)
    pace.learn(4, 2.2)
    return pace


def test_without_knowing_anything_a_pass_has_all_rows() -> None:
    assert Pace().rows([0.1, 0.01], inf) == 2


@pytest.mark.parametrize(
    ("chances", "rows"),
    [
        ([0.9, 0.03, 0.02, 0.01], 1),
        ([0.4, 0.3, 0.15, 0.05], 2),
        ([0.25, 0.24, 0.23, 0.22], 4),
        ([0.16, 0.01], 1),
        ([0.14, 0.01], 0),
        ([], 0),
    ],
    ids=["one is sure", "two are likely", "four are as likely", "worth little", "too little", "nothing"],
)
def test_a_pass_has_the_rows_that_save_most_of_its_time(chances: list[float], rows: int) -> None:
    assert known().rows(chances, inf) == rows


@pytest.mark.parametrize(
    ("chance", "left", "rows"), [(0.9, 0.5, 1), (0.9, 0.2, 0), (0.5, 0.5, 0), (0.5, 0.9, 1)]
)
def test_a_pass_that_the_loop_must_wait_for_has_to_be_surer(chance: float, left: float, rows: int) -> None:
    assert known().rows([chance], left) == rows


def test_what_was_not_run_is_as_the_nearest_that_was() -> None:
    pace = Pace()
    pace.learn(4, 2.05)
    assert pace.seconds(1) == pytest.approx(1.0)
    pace.learn(1, 1.1)
    assert pace.seconds(1) == pytest.approx(1.1)
    for _ in range(30):
        pace.learn(1, 2.0)
    assert pace.seconds(1) == pytest.approx(2.0, abs=0.01)


def test_a_worker_knows_about_how_long_the_target_will_take() -> None:
    """By passes over as many rows; of others it knows nothing."""
    worker, found = Worker(), list[float]()
    for tree in (TokenTree.root(0), TokenTree.root(0), TokenTree.chain([0, 1])):
        worker.later(lambda meanwhile: found.append(meanwhile.left()))
        worker.begin(tree)
        time.sleep(0.05)
        worker.rest()
    worker.close()
    assert found[0] == found[2] == inf
    assert 0.02 < found[1] < 0.2


def test_work_that_waits_goes_on_with_what_is_said_and_with_the_end() -> None:
    worker, heard = Worker(), list[bool]()

    def work(meanwhile: Meanwhile) -> None:
        while not meanwhile.over():
            meanwhile.wait()
            heard.append(meanwhile.early is not None)

    for says in (True, False, True):
        worker.later(work)
        worker.begin(TokenTree.root(0))
        if says:
            worker.hear(EARLY)
            while not heard:
                time.sleep(1e-3)
        ended = Thread(target=worker.rest)
        ended.start()
        ended.join(5)
        assert not ended.is_alive()
        assert heard == [True, True] if says else [False]
        heard.clear()
    worker.close()
