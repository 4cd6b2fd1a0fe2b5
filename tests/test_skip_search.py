"""Which blocks a draft can do without: how sets are counted, sought and judged."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
from paceline.export.skips.search import search, speed
from paceline.export.skips.yardstick import accepted, agreement, round_tokens


def test_shares_by_depth_and_tokens_a_round_are_counted_from_what_was_right() -> None:
    right = [np.array([[1, 1], [1, 0], [0, 1], [1, 1]], bool)]
    assert agreement(right) == 0.75
    assert accepted(right) == [
        0.75,
        0.5,
    ]  # of the first three places' first tokens two were right, one went on
    assert round_tokens(right, 2) == 2.0  # three tokens at once, then the last
    assert round_tokens(right, 1) == 4 / 3
    assert accepted([np.zeros((3, 2), bool)]) == [0.0]


def test_the_search_finds_the_blocks_that_cost_nothing() -> None:
    rng = np.random.default_rng(5)
    losses = rng.uniform(0.1, 0.5, 40)
    free = sorted(rng.choice(40, 16, replace=False).tolist())
    losses[free] = 0.01

    def score(chosen: tuple[int, ...]) -> float:
        return float(np.exp(-losses[list(chosen)].sum() - 0.02 * rng.random()))

    found = search([100] * 40, 0.4, score, 120)
    assert (list(found.chosen), len(found.chosen)) == (free, 16)
    assert found.trials <= 120
    blind = search([100] * 40, 0.4, score, 12)
    assert blind.agreement < found.agreement


def test_a_share_is_one_of_bytes() -> None:
    sizes = [100] * 10 + [300] * 10
    found = search(sizes, 0.5, lambda chosen: 0.5, 30)
    assert 2000 <= sum(sizes[block] for block in found.chosen) < 2300


def test_where_nothing_agrees_a_set_is_found_all_the_same() -> None:
    found = search([100] * 10, 0.5, lambda chosen: 0.0, 30)
    assert (len(found.chosen), found.agreement) == (5, 0.0)


def test_what_pays_is_told_from_what_does_not() -> None:
    assert speed([0.6, 0.6, 0.6], price=0.64, row=0.25) == (0, 1.0)
    depth, gain = speed([0.9, 0.9, 0.9], price=0.3, row=0.05)
    assert (depth, round(gain, 3)) == (3, round(3.439 / 2.05, 3))
