"""What `--mirror auto` learns from earlier answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from paceline import load
from paceline.runtime import overlapping
from paceline.runtime.beside import Tally
from paceline.runtime.control.overlap import HIDDEN, HITS
from paceline.runtime.experience import Experience, Journal
from paceline.runtime.stats import Statistics

Seconds = Callable[[int], float]


def answer(
    rounds: int = 100, beside: bool = True, *, hits: int = 0, misses: int = 0, slow: float = 1.0
) -> Statistics:
    """Five rows a round, each of which takes 1 ms alone; a draft of 4 ms, 1 of which is left on a hit."""
    stats = Statistics(rounds=rounds, drafted=4 * rounds, accepted=2 * rounds, tested=3 * rounds)
    stats.seconds["verify"] = 5e-3 * rounds * slow
    if beside:
        stats.beside = Tally(hits, misses, hit_seconds=1e-3 * hits, miss_seconds=4e-3 * misses, passes=rounds)
    return stats


def test_what_is_usual_counts_until_something_was_seen() -> None:
    new = Experience()
    assert (new.hit(0.6), new.hidden, new.chance(0.7), new.slower(1.0)) == (0.6, HIDDEN, 0.7, 1.0)
    seen = new
    for _ in range(50):
        seen = seen.after(answer(hits=90, misses=10, slow=1.5))
    assert seen.hit(0.6) == pytest.approx(0.9, abs=0.01)
    assert seen.hidden == pytest.approx(0.75, abs=0.01)
    assert seen.chance(0.1) == pytest.approx(2 / 3, abs=0.01)
    assert seen.width == pytest.approx(5)
    assert seen.slower(5e-3) == pytest.approx(1.5, abs=0.02)


def test_what_was_seen_fades() -> None:
    """A pair that never hit and then always hits is believed within some thousand rounds, and no sum grows for ever."""
    seen = Experience()
    for _ in range(100):
        seen = seen.after(answer(misses=100))
    assert seen.hit(0.6) < 0.02
    assert seen.rounds < 2500
    for _ in range(40):
        seen = seen.after(answer(hits=100))
    assert seen.hit(0.6) > 0.8


def test_acceptance_and_rounds_fade_each_by_their_own_count() -> None:
    """Half of what is known of 4000 drafted tokens goes, and nothing of what 100 rounds told."""
    seen = Experience(100, 500, 2.0, 60, 40, 0.1, 0.4, accepted=3000, tested=4000)
    rounds = Experience(4000, 20000, 8.0, 600, 400, 1.0, 4.0, accepted=30, tested=40)
    new = answer(10, hits=5, misses=5)
    assert seen.after(new) == Experience(
        110, 550, pytest.approx(2.05), 65, 45, pytest.approx(0.105), pytest.approx(0.42), 1520, 2030
    )
    assert rounds.after(new) == Experience(
        2010, 10050, pytest.approx(4.05), 305, 205, pytest.approx(0.505), pytest.approx(2.02), 50, 70
    )


def test_serial_answers_teach_acceptance_alone() -> None:
    seen = Experience().after(answer(beside=False))
    assert (seen.rounds, seen.hits, seen.misses) == (0, 0, 0)
    assert seen.chance(0.1) > 0.6


@pytest.mark.parametrize(
    "text", ["[]", '{"key": 5}', '{"key": [1, 2]}', '{"key": [-1, 0, 0, 0, 0, 0, 0, 0, 0]}', "x"]
)
def test_a_file_that_makes_no_sense_is_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    (tmp_path / "beside.json").write_text(text)
    journal = Journal("key", "chain")
    assert journal.read() == Experience()
    journal.learn(answer(hits=1))
    assert journal.read().hits == 1


def test_answers_are_kept_for_the_next_session_and_auto_goes_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told what the answers came to: here that everything hit, and that the target was twice as slow."""
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    with load(drafter="chain", threads=2, mirror="on") as session:
        session.generate("Once upon a time, a dog", max_tokens=60).read()
        done = session.stats
        session.set_drafter("lookup")
        session.generate("Once upon a time, a dog", max_tokens=20).read()
    [(key, sums)] = json.loads((tmp_path / "beside.json").read_text()).items()
    assert sums[0] == done.rounds > 0
    assert sums[7:] == [done.accepted, done.tested]
    asked, said = list[tuple[float, float, float, float]](), list[str | None]()

    def judged(
        together: Seconds, alone: Seconds, step: float, chance: float, hit: float, hidden: float
    ) -> float:
        asked.append((alone(5), chance, hit, hidden))
        return 0.91

    monkeypatch.setattr(overlapping, "gain", judged)
    for _ in range(2):
        with load(drafter="chain", threads=2, mirror="auto") as session:
            said.append(session.stats.mirror)
        Journal(key, "chain").learn(answer(2000, hits=2000, slow=1e3))
    assert all(why and why.startswith("off, predicted 0.91 times drafting before the target") for why in said)
    assert str(said[0]).endswith(f": {done.rounds} rounds of earlier answers)")
    [(first, _, early, _), (slowed, _, late, _)] = asked
    assert HITS["weight"] - 0.2 < early < late > 0.9
    assert slowed > 1.5 * first  # of which a busy machine may have slowed the first one down, too
