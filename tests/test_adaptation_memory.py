"""What learning from use takes in memory: planned, shown, and measured beside the plan."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from adaptable import adaptable_bundle
from command_line import call
from planned_memory import taken

from paceline.memory.model import LEARNING
from paceline.runtime.adaptation.pupil import SAMPLES_BYTES, WAITING_BYTES
from paceline.runtime.loading import load

# Steps are left out: samples are all that comes to be held.
FULL = """
import numpy as np
from paceline.runtime.adaptation.laws import Episode
rng, learner = np.random.default_rng(0), session.learner
[(pupil, _)] = learner._pupils.values()
learner.wait()
pupil.step.run = lambda sample, rate: 1.0
def episode():
    places = np.arange(10, 249, dtype=np.int32)
    ids = np.stack([rng.permutation(300)[:16] for _ in places]).astype(np.int32)
    return Episode(rng.integers(0, 300, 250).tolist(), places, ids, np.full((239, 16), 0.05, np.float32))
while pupil._bytes < 0.97 * {samples}:
    learner.enter(), learner.show(episode()), learner.leave(0.01), learner.wait()
learner.enter()
for _ in range({waiting} // episode().bytes + 2):
    learner.show(episode())
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))


def learning_bytes(*more: str) -> int:
    """Of the plan's line; 0 where it has none."""
    shown = call("plan", "-b", adaptable_bundle(), "--drafter", "chain", "-c", "256", "--json", *more).json()
    assert sum(part["bytes"] for part in shown["parts"]) == shown["planned_bytes"]
    return sum(part["bytes"] for part in shown["parts"] if part["what"] == LEARNING)


def test_a_plan_counts_it_as_the_process_does() -> None:
    full = FULL.format(samples=SAMPLES_BYTES, waiting=WAITING_BYTES)
    for _ in range(2):  # the first loads measure, the others know
        off = taken(adaptable_bundle(), "chain", adapt="off")
        on = taken(adaptable_bundle(), "chain", full, adapt="on")
    for found in (off, on):
        assert found.planned == pytest.approx(found.peak, rel=0.05)
    assert on.peak - off.peak > SAMPLES_BYTES
    assert on.peak <= on.planned + 1_000_000
    assert off.planned == pytest.approx(on.planned - learning_bytes("--adapt", "on"), rel=0.01)


def test_it_is_a_line_of_its_own_where_a_draft_model_learns() -> None:
    assert learning_bytes() == learning_bytes("--adapt", "off") == 0
    assert learning_bytes("--adapt", "on") > SAMPLES_BYTES
    text = call("plan", "-b", adaptable_bundle(), "--drafter", "chain", "--adapt", "on").out
    assert LEARNING in text
    plain = call("plan", "-b", adaptable_bundle(), "--drafter", "lookup", "--adapt", "on").out
    assert LEARNING not in plain


def test_what_was_measured_takes_the_place_of_the_estimate() -> None:
    guessed = learning_bytes("--adapt", "on")
    script = (
        "import paceline, sys; paceline.load(sys.argv[1], drafter='chain', adapt=sys.argv[2], memory='1GB')"
    )
    planned = "plan", "-b", adaptable_bundle(), "--drafter", "chain", "--adapt", "on", "--json"
    for adapt in ("off", "on"):
        assert not call(*planned).json()["measured_on_this_device"], "of learning nothing is known without it"
        subprocess.run([sys.executable, "-c", script, str(adaptable_bundle()), adapt], check=True)
    assert call(*planned).json()["measured_on_this_device"]
    assert 0 < learning_bytes("--adapt", "on") < guessed


def test_sessions_over_the_same_weights_share_it() -> None:
    with load(adaptable_bundle(), drafter="chain", adapt="on", memory="2GB") as session:
        assert session.plan is not None
        terms = {term.what: term.bytes for term in session.plan.terms if term.what == LEARNING}
        more = [term.bytes for term in session.plan.shared_by(2).terms if term.part == "sessions"]
    assert more[0] < terms[LEARNING]
