"""Draft models that learn from use: what is taken down, when a step runs, and that no answer changes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from adaptable import VOCAB, adaptable_bundle, pupil, some_episode
from toy_vocabularies import sides

from paceline.memory.errors import ArgumentError
from paceline.runtime.adaptation import laws as laws_module
from paceline.runtime.adaptation import pupil as pupil_module
from paceline.runtime.adaptation.laws import Episode, Laws
from paceline.runtime.adaptation.learner import SHARE, Learner
from paceline.runtime.adaptation.samples import RUNS, samples_of
from paceline.runtime.contracts import Outcome, Scored, Verdict
from paceline.runtime.loading import load
from paceline.runtime.request import Sampling
from paceline.runtime.session import Session
from paceline.runtime.tree import TokenTree

GREEDY, SAMPLED = Sampling(0.0), Sampling(1.0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))


def opened(**choices: object) -> Session:
    return load(adaptable_bundle(), drafter="chain", **{"adapt": "on", **choices})  # type: ignore[arg-type]


@pytest.fixture
def session() -> Iterator[Session]:
    with opened() as made:
        yield made


def ask(session: Session, number: int = 0, sampling: Sampling = GREEDY, accept: str = "coupled") -> list[int]:
    prompt = [7 + number, 30, 41, 5, 99]
    return session.generate(prompt, max_tokens=40, sampling=sampling, seed=3, accept=accept).read().tokens  # type: ignore[arg-type]


# What is taken down


def outcome(path: tuple[int, ...], tokens: list[int], logits: np.ndarray) -> Outcome:
    return Outcome(TokenTree.chain(tokens), Scored(logits), Verdict(path, 9, len(tokens) - 1))


def test_laws_are_the_targets_at_accepted_and_rejected_places() -> None:
    rng = np.random.default_rng(0)
    taken = Laws()
    taken.begin()
    logits = rng.normal(size=(4, VOCAB)).astype(np.float32)
    text = [1, 2, 3, 50, 51, 9]
    taken.see(outcome((0, 1, 2), [3, 50, 51, 52], logits), len(text))
    found = taken.episode([*text, 4])
    assert found is not None
    assert found.places.tolist() == [2, 3, 4]
    for row, (ids, probs) in enumerate(zip(found.ids, found.probs, strict=True)):
        law = np.exp(logits[row]) / np.exp(logits[row]).sum()
        assert ids.tolist() == np.argsort(-law)[:16].tolist()
        assert probs == pytest.approx(law[ids], rel=1e-4)
    assert taken.episode(text) is None, "each is given once"


def test_taking_down_keeps_to_its_share_of_the_time() -> None:
    """However slow it is: rounds of 1 ms, and every look at the clock takes 10 ms."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    taken = Laws(clock)
    taken.begin()
    logits, seen = np.zeros((1, VOCAB), np.float32), 0
    for _ in range(3000):
        now[0] += 0.001
        before = taken.spent
        taken.see(outcome((0,), [3], logits), 10)
        seen += taken.spent > before
    assert 0 < seen < 3000
    assert taken.spent <= laws_module.SHARE * now[0] + 0.02


def test_of_a_long_answer_the_latest_laws_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laws_module, "MOST_LAWS", 5)
    taken = Laws(clock=lambda: 0.0)
    taken.begin()
    for length in range(3, 13):
        taken.see(outcome((0,), [3], np.zeros((1, VOCAB), np.float32)), length)
    found = taken.episode(range(14))
    assert found is not None
    assert found.places.tolist() == [6, 7, 8, 9, 10]


# Samples


def test_samples_hold_every_law_once_behind_what_comes_before_it() -> None:
    episode = some_episode(200)
    found = {}
    for sample in samples_of(episode, VOCAB, None):
        for row in np.flatnonzero(sample["weight"]):
            begin = sample["token_ids"][: row + 1].tolist()
            [at] = [p for p in episode.places.tolist() if episode.tokens[p - row : p + 1] == begin]
            assert at not in found
            found[at] = sample["ids"][row].tolist(), sample["probs"][row].tolist()
            assert row >= 8, "a law stands behind some text"
    assert sorted(found) == episode.places.tolist()
    for at, place in enumerate(episode.places.tolist()):
        assert found[place] == (episode.ids[at].tolist(), episode.probs[at].tolist())


def test_tokens_that_a_draft_model_lacks_have_no_chance() -> None:
    for sample in samples_of(some_episode(), 100, None):
        assert sample["ids"].max() < 100
        assert sample["token_ids"].max() < 100
        assert 0 < (sample["probs"] > 0).sum() < sample["probs"].size


def test_pieces_of_a_token_are_labels() -> None:
    """Target tokens of two letters, draft tokens of one: what follows is spelled, and no law is mapped directly."""
    pair = sides([bytes([c]) for c in b"abcdef"], [bytes([a, b]) for a in b"abc" for b in b"def"])
    text = [0, 4, 8, 2, 6]
    places = np.arange(1, 4, dtype=np.int32)
    ids = np.array([[text[p + 1], 0] for p in places], np.int32)
    episode = Episode(text, places, ids, np.full((3, 2), 0.5, np.float32))
    [sample] = samples_of(episode, 6, pair)
    spelled = pair.draft.spells
    rows = np.flatnonzero(sample["label_weight"])
    assert sample["label_weight"][rows] == pytest.approx(RUNS)
    assert spelled(sample["label"][rows].tolist()) == pair.target.spells(text[2:])
    assert [int(sample["token_ids"][row + 1]) for row in rows[:-1]] == sample["label"][rows[:-1]].tolist()
    assert not sample["probs"].any()


def test_samples_keep_to_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pupil_module, "SAMPLES_BYTES", most := 200_000)
    learning = pupil()
    for number in range(6):
        for sample in samples_of(some_episode(300, number), VOCAB, None):
            learning._learn_new(sample)
    held = sum(array.nbytes for sample in learning._kept for array in sample.values())
    assert held == learning._bytes
    assert most / 2 < held <= most


def test_so_do_the_answers_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    each = some_episode(300).bytes
    monkeypatch.setattr(pupil_module, "WAITING_BYTES", 3 * each)
    learning = pupil()
    for number in range(6):
        learning.show(some_episode(300, number))
    assert [e.tokens for e in learning._episodes] == [some_episode(300, n).tokens for n in (3, 4, 5)]
    monkeypatch.setattr(pupil_module, "WAITING_BYTES", each // 2)
    learning.show(some_episode(300, 6))
    assert len(learning._episodes) == 1, "the last one is learnt from, however large"


# When a step runs


def test_it_learns_in_idle_moments_and_draws_nearer() -> None:
    learner, learning = Learner(), pupil()
    learner.pupil("draft", "pair", lambda: learning)
    learner.enter()
    learner.show(some_episode())
    time.sleep(0.05)
    assert learning.step.steps == 0, "an answer runs"
    learner.leave(1.0)
    assert learner.wait(30)
    steps = learning.step.steps
    assert steps >= 8
    learner.close()
    assert not any(thread.name == "paceline-adaptation" for thread in threading.enumerate())
    assert not learning.waits


def test_no_step_runs_beside_an_answer() -> None:
    learner, learning = Learner(), pupil()
    learner.pupil("draft", "pair", lambda: learning)
    for number in range(20):
        learner.enter()
        before = learning.step.steps
        learner.show(some_episode(400, number))
        time.sleep(0.005)
        assert learning.step.steps == before
        learner.leave(0.005)
        time.sleep(0.01)
    assert learning.step.steps > 0
    learner.close()


def test_an_answer_that_is_interrupted_before_it_begins_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner, learning = Learner(), pupil()
    learner.pupil("draft", "pair", lambda: learning)
    learner.enter()
    learner.leave(1e9)  # all the time in the world for steps before the next answer
    real = learning.learn

    def interrupted() -> None:
        raise KeyboardInterrupt

    with learner.still():
        learner.show(some_episode())
        monkeypatch.setattr(learning, "learn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            learner.enter()
        monkeypatch.setattr(learning, "learn", real)
    assert learner._answers == 0
    assert learner.wait(30)
    learner.close()


def test_a_step_that_fails_ends_learning_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, learning = Learner(), pupil()
    learner.pupil("draft", "pair", lambda: learning)

    def fails() -> None:
        raise RuntimeError("no memory\nfor the step")

    monkeypatch.setattr(learning, "learn", fails)
    for _ in range(2):
        learner.enter()
        learner.show(some_episode())
        learner.leave(1.0)
        assert learner.wait(30)
    assert [found.fault for found in learner.learned()] == ["learning ended: no memory for the step"]
    assert learning.step.steps == 0
    learner.close()


def test_answers_without_a_pause_are_delayed_by_a_share() -> None:
    learner, learning = Learner(), pupil()
    learner.pupil("draft", "pair", lambda: learning)
    longest = 0.0
    for number in range(60):
        begun = time.perf_counter()
        learner.enter()
        longest = max(longest, time.perf_counter() - begun)
        learner.show(some_episode(400, number))
        learner.leave(0.2)
    assert learning.step.steps > 0
    # What is allowed, and a step for each answer that may have begun beside one.
    step = learner.learning / max(learning.step.steps, 1)
    assert learner.delaying <= SHARE * learner.answering + 60 * 3 * step
    learner.close()


# Answers


def test_greedy_and_coupled_answers_stay_what_they_are(session: Session) -> None:
    with opened(adapt="off") as plain:
        expected = [ask(plain, n, sampling) for n in range(6) for sampling in (GREEDY, SAMPLED)]
    got = []
    for number in range(6):
        for sampling in (GREEDY, SAMPLED):
            got.append(ask(session, number, sampling))
            assert session.learner.wait(60)
    assert got == expected
    [learned] = session.learner.learned()
    assert learned.steps > 0
    assert learned.loss is not None


def test_what_was_learnt_changes_drafts() -> None:
    """The negative control: adapters are in the model that drafts, from the next answer on."""
    with opened() as session:
        ask(session)
        [model] = session._workshop._models.values()
        assert not any(array.any() for array in model.adapters.values())
        assert session.learner.wait(60)
        assert not any(array.any() for array in model.adapters.values()), "not before an answer begins"
        ask(session)
        assert all(array.any() for array in model.adapters.values())


def test_an_answer_that_depends_on_drafts_is_drafted_as_if_nothing_had_been_learnt() -> None:
    with opened() as session:
        fresh = ask(session, 1, SAMPLED, "rejection")
    with opened() as session:
        for number in range(4):
            ask(session, number)
            assert session.learner.wait(60)
        assert ask(session, 1, SAMPLED, "rejection") == fresh
        [model] = session._workshop._models.values()
        assert not any(array.any() for array in model.adapters.values())
        ask(session)
        assert any(array.any() for array in model.adapters.values())


def test_sessions_share_what_is_learnt_and_keep_it(session: Session) -> None:
    with session.another() as other:
        ask(other)
        assert session.learner.wait(60)
        assert session.learner.learned() == other.learner.learned()
    ask(session)
    session.learner.wait(60)
    [before] = session.learner.learned()
    session.close()
    with opened() as again:
        [learned] = again.learner.learned()
        assert learned.steps == before.steps
        assert learned.bytes is not None
        again.learner.forget()
        [learned] = again.learner.learned()
        assert (learned.steps, learned.bytes) == (0, None)
    with opened() as again:
        assert [learned.steps for learned in again.learner.learned()] == [0]


def test_off_means_that_nothing_is_learnt_or_kept(tmp_path: Path) -> None:
    with opened(adapt="off") as session:
        ask(session)
        assert session.learner.learned() == []
    assert not (tmp_path / "cache" / "adapters").exists()


def test_wrong_choices_are_refused() -> None:
    with pytest.raises(ArgumentError, match="adapt is on or off"):
        opened(adapt="maybe")


_UNCLOSED = """
import sys, numpy as np, paceline
from paceline.runtime.adaptation.laws import Episode
session = paceline.load(sys.argv[1], drafter="chain", adapt="on")
session.generate([5, 6, 7, 8], max_tokens=20).read()
places, law = np.arange(10, 249, dtype=np.int32), np.full((239, 1), 0.5, np.float32)
for _ in range(20):
    session.learner.show(Episode(list(range(250)), places, np.ones((239, 1), np.int32), law))
assert session.learner._next()
"""


def test_a_process_that_closes_nothing_ends_in_order() -> None:
    command = [sys.executable, "-c", _UNCLOSED, str(adaptable_bundle())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
