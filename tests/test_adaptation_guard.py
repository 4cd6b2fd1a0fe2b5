"""Learning that does harm is found out, and undone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from adaptable import VOCAB, pupil

from paceline.adapt_text import learned_lines
from paceline.runtime.adaptation import pupil as pupil_module
from paceline.runtime.adaptation.contract import sample_shapes
from paceline.runtime.adaptation.guard import Guard
from paceline.runtime.adaptation.learner import Learner
from paceline.runtime.adaptation.pupil import Pupil
from paceline.runtime.adaptation.samples import Sample


def some_sample(seed: int) -> Sample:
    """Of a target that says one of four tokens, which follow from the last one: this can be learnt."""
    rng = np.random.default_rng(seed)
    sample = {name: np.zeros(shape, kind) for name, (kind, shape) in sample_shapes().items()}
    sample["token_ids"][:] = rng.integers(0, VOCAB, len(sample["token_ids"]))
    sample["ids"][:, :4] = (7 * sample["token_ids"][:, None] + np.arange(4)) % VOCAB
    sample["probs"][:, :4], sample["weight"][:] = 0.24, 1
    return sample


def taught(learning: Pupil, samples: int) -> float:
    """What it has lost, of a sample it never saw, against having learnt nothing, after so many."""
    for number in range(samples):
        learning._learn_new(some_sample(number))
    new = some_sample(1000)
    return learning.step.run(new, 0.0) - learning.step.loss_without(new)


def test_consistent_harm_is_told_from_chance() -> None:
    """Gains that vary more than they are below zero say nothing; the same loss five times does, at the fifth."""
    guard, zeros = Guard(), {"a": np.zeros(1, np.float32)}
    assert [guard.see(1.1, 1.0, zeros) for _ in range(5)] == [False] * 4 + [True]
    guard = Guard()
    rng = np.random.default_rng(0)
    assert not any(guard.see(1.0, 1.01 + 0.1 * rng.standard_normal(), zeros) for _ in range(200))
    guard = Guard()
    assert [guard.see(math.nan, 1.0, zeros) for _ in range(5)][-1]


def test_it_goes_back_to_the_adapters_that_were_better() -> None:
    guard = Guard()
    good, bad = ({"a": np.full(1, number, np.float32)} for number in (1, 2))
    for _ in range(3):
        guard.see(0.5, 1.0, good)
    for _ in range(30):
        if guard.see(3.0, 1.0, bad):
            break
    assert guard.better is good
    guard.went_back()
    assert (guard.better, guard.returns) == (None, 1)


def test_learning_that_helps_is_left_alone() -> None:
    learning = pupil()
    assert taught(learning, 60) < -0.01
    assert learning.guard.returns == 0


@pytest.mark.parametrize("guarded", [True, False])
def test_an_absurd_rate_does_no_lasting_harm(monkeypatch: pytest.MonkeyPatch, guarded: bool) -> None:
    """Without the guard, the control, the same samples leave it far worse than it was."""
    monkeypatch.setattr(pupil_module, "RATE", 10.0)
    if not guarded:
        monkeypatch.setattr(Guard, "see", lambda *_: False)
    learning = pupil()
    lost = taught(learning, 60)
    assert (lost > 0.05) != guarded
    assert (learning.guard.returns > 1) == guarded
    if guarded:
        assert lost < 0


def test_a_chat_says_that_it_went_back(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    learner, learning = Learner(), pupil()
    learner.pupil("draft", "pair", lambda: learning)
    assert "went back" not in " ".join(learned_lines(learner.learned()))
    learning.guard.went_back()
    assert "was worse than nothing learnt once: went back" in " ".join(learned_lines(learner.learned()))
    learner.forget()
    assert "went back" not in " ".join(learned_lines(learner.learned()))
