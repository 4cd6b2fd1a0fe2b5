"""What draft models have learnt, in the file of a user: whole, checked, and of this pair."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from adaptable import adaptable_bundle, pupil, some_episode
from killed_writer import kill_while_writing

from paceline.runtime.adaptation.pupil import Pupil
from paceline.runtime.adaptation.saved import SavedAdapters
from paceline.runtime.loading import load


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))


def saved_with(steps: int, pair: str = "pair") -> tuple[SavedAdapters, Pupil]:
    learning, saved = pupil(), SavedAdapters(pair)
    learning._cut(some_episode())
    for _ in range(steps):
        learning.learn()
    saved.save(learning)
    return saved, learning


def test_a_file_gives_back_what_was_learnt() -> None:
    saved, learning = saved_with(3)
    again, fresh = SavedAdapters("pair"), pupil()
    again.load(fresh)
    assert fresh.step.steps == 3
    for name, array in fresh.step.adapters.items():
        assert np.array_equal(array, learning.step.adapters[name])
    assert again.fault is None
    assert saved.path is not None
    assert saved.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda raw: b"", "checksum"),
        (lambda raw: b"nonsense" * 10, "checksum"),
        (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "checksum"),
        (lambda raw: raw[: len(raw) // 2], "checksum"),
    ],
)
def test_a_damaged_file_is_no_file_and_is_told(damage: object, told: str) -> None:
    saved, _ = saved_with(2)
    assert saved.path is not None
    saved.path.write_bytes(damage(saved.path.read_bytes()))  # type: ignore[operator]
    again, fresh = SavedAdapters("pair"), pupil()
    again.load(fresh)
    assert fresh.step.steps == 0
    assert told in str(again.fault)
    assert "\n" not in str(again.fault)


def test_adapters_of_another_target_are_not_used() -> None:
    foreign, _ = saved_with(2, "another pair")
    mine, fresh = SavedAdapters("pair"), pupil()
    assert foreign.path is not None
    assert mine.path is not None
    foreign.path.rename(mine.path)
    mine.load(fresh)
    assert fresh.step.steps == 0
    assert "another draft model, or for another target" in str(mine.fault)


def test_the_chat_says_why_a_file_is_not_used() -> None:
    from paceline.adapt_text import learned_lines

    with load(adaptable_bundle(), drafter="chain", adapt="on") as session:
        session.generate([7, 30, 41, 5, 99], max_tokens=40).read()
        session.learner.wait(60)
    [file] = Path(os.environ["PACELINE_CACHE"]).glob("adapters/*.adapters")
    file.write_bytes(b"x" * 100)
    with load(adaptable_bundle(), drafter="chain", adapt="on") as session:
        lines = learned_lines(session.learner.learned())
    assert any("is damaged" in line for line in lines)
    assert "no draft model learns" in learned_lines([])[0]


def test_of_two_sessions_the_one_that_learnt_more_stays() -> None:
    saved_with(5)
    saved_with(2)
    fresh = pupil()
    SavedAdapters("pair").load(fresh)
    assert fresh.step.steps == 5


def _save_for_ever(learning: Pupil) -> None:
    saved = SavedAdapters("pair")
    while True:
        learning.step.steps += 1
        saved.save(learning)


def test_a_kill_in_the_middle_of_a_save_leaves_a_whole_file() -> None:
    saved, learning = saved_with(1)
    assert saved.path is not None
    for _ in range(4):
        kill_while_writing(saved.path, _save_for_ever, learning)
        again = SavedAdapters("pair")
        again.load(learning)
        assert again.fault is None
        assert learning.step.steps > 1
