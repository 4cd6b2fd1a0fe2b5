"""The shared noise is Gumbel noise, the same for everybody, and unrelated from one key to the next."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.runtime.law import Law
from paceline.runtime.rules.noise import GumbelNoise

IDS = np.arange(20000, dtype=np.int64)
Field = Callable[..., np.ndarray]  # (seed, number, position, ids) -> uniforms


def uniforms(seed: int, number: int, position: int, ids: np.ndarray = IDS) -> np.ndarray:
    return np.exp(-np.exp(-GumbelNoise(seed, number).at(position, ids)))


def without_mixing(seed: int, number: int, position: int, ids: np.ndarray = IDS) -> np.ndarray:
    """What a plain additive counter would give."""
    return (ids * 0.6180339887498949 + 0.1 * (seed + number + position)) % 1


def uneven(values: np.ndarray, bins: int = 64) -> float:
    """Chi-square of evenness in standard deviations."""
    counts = np.bincount((values * bins).astype(int), minlength=bins)
    expected = len(values) / bins
    return (((counts - expected) ** 2 / expected).sum() - (bins - 1)) / np.sqrt(2 * (bins - 1))


def related(a: np.ndarray, b: np.ndarray) -> float:
    """How far pairs are from independent: correlation and chi-square of an 8 x 8 table, in deviations."""
    correlation = np.corrcoef(a, b)[0, 1] * np.sqrt(len(a))
    joint = (a * 8).astype(int) * 8 + (b * 8).astype(int)
    return max(abs(correlation), uneven(joint / 64))


def worst(field: Field) -> float:
    """The largest deviation over tokens, and over neighbouring tokens, positions, seeds and numbers."""
    found = 0.0
    for seed, number, position in [(0, 0, 0), (1, 2, 3), (2**40, 5, 4000), (-1, 0, 17)]:
        here = field(seed, number, position)
        found = max(found, uneven(here), related(here[1:], here[:-1]), related(here[256:], here[:-256]))
        for other in [
            (seed + 1, number, position),
            (seed, number + 1, position),
            (seed, number, position + 1),
        ]:
            found = max(found, related(here, field(*other)))
        # One token over many positions and seeds: the order in which a generation reads the noise.
        found = max(found, uneven(np.array([field(seed, number, p, IDS[7:8])[0] for p in range(640)]), 16))
        found = max(
            found, uneven(np.array([field(s, number, position, IDS[7:8])[0] for s in range(640)]), 16)
        )
    return found


def test_the_noise_is_even_and_its_keys_are_unrelated() -> None:
    assert worst(uniforms) < 5  # about 60 statistics of unit deviation


def test_a_counter_without_mixing_is_found_out() -> None:
    assert worst(without_mixing) > 5


def test_position_seed_and_number_are_not_interchangeable() -> None:
    a = GumbelNoise(3, 4).at(5, IDS[:8])
    for seed, number, position in [(4, 3, 5), (3, 5, 4), (5, 4, 3), (-3, 4, 5), (3 + 2**64, 4, 5)]:
        assert not np.array_equal(a, GumbelNoise(seed, number).at(position, IDS[:8]))


def test_the_noise_of_a_token_does_not_depend_on_the_company() -> None:
    noise = GumbelNoise(1, 2)
    assert np.array_equal(noise.at(9, IDS)[[5, 17000, 3]], noise.at(9, np.array([5, 17000, 3])))
    assert noise.at(9, IDS[::7][:3])[1] == noise.at(9, IDS)[7]


def test_the_noise_is_the_same_in_every_release() -> None:
    assert GumbelNoise(0, 0).at(0, IDS[:3]).tolist() == pytest.approx(PINNED[0], rel=1e-12)
    assert GumbelNoise(1234, 5).at(678, np.array([151935])).tolist() == pytest.approx(PINNED[1], rel=1e-12)


def test_the_moments_are_those_of_a_gumbel_variable() -> None:
    noise = GumbelNoise(0, 0).at(0, np.arange(400000))
    assert abs(noise.mean() - 0.5772156649) < 5 * 1.2825 / np.sqrt(400000)
    assert abs(noise.var() - np.pi**2 / 6) < 5 * np.sqrt(4.4 / 400000) * np.pi**2 / 6
    assert np.isfinite(noise).all()


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0.05, 60.0), st.sampled_from([3, 400, 5000, 30000]), st.booleans())
def test_choosing_finds_the_largest_perturbed_value(seed: int, heat: float, size: int, masked: bool) -> None:
    rng = np.random.default_rng(seed)
    row = (rng.normal(size=size) * 4).astype(np.float32)
    if masked:
        row[rng.random(size) < 0.9] = -np.inf
        row[0] = 0
    weights = np.exp((row.astype(np.float64) - float(row.max())) / heat)
    ids = np.flatnonzero(weights)
    law = Law(ids, weights[ids] / weights.sum())
    noise, position = GumbelNoise(seed, 1), seed % 99
    token = ids[(np.log(law.probs) + noise.at(position, ids)).argmax()]
    assert noise.choose(position, law) == token
    assert noise.choose_in_row(position, row, heat) == token


def test_choices_over_positions_follow_the_law() -> None:
    law = Law(np.array([2, 5, 6, 90]), np.array([0.5, 0.3, 0.15, 0.05]))
    noise = GumbelNoise(11, 0)
    chosen = [noise.choose(position, law) for position in range(4000)]
    counts = np.array([chosen.count(int(token)) for token in law.ids])
    assert ((counts - 4000 * law.probs) ** 2 / (4000 * law.probs)).sum() < 3 + 5 * np.sqrt(6)


PINNED = [
    [-0.566102028911393, 0.18341776012839806, 2.3789801006791444],
    [0.26731556984828775],
]


def test_rough_noise_is_the_noise_to_three_digits() -> None:
    noise = GumbelNoise(7, 3)
    for position in (0, 1, 99):
        exact, rough = noise.at(position, IDS), noise.roughly(position, IDS)
        assert rough.dtype == np.float32
        np.testing.assert_allclose(rough, exact, rtol=2e-3, atol=2e-3)
        assert (np.argsort(-rough)[:20] == np.argsort(-exact)[:20]).all()
