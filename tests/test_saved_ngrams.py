"""What was learnt of a pair of vocabularies is there in the next session, whatever happens to the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from killed_writer import kill_while_writing
from toy_vocabularies import sides

from paceline.runtime.translation.saved import SavedNgrams
from paceline.runtime.translation.sides import Sides

WORDS = [bytes([a, b]) for a in b"abcdefghij" for b in b"klmnopqrst"]
SINGLE = [bytes([letter]) for letter in b"abcdefghijklmnopqrst"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))


def fresh() -> Sides:
    return sides(SINGLE, WORDS, learnt=False)


def learn(pair: Sides, tokens: range) -> None:
    for token in tokens:
        run = pair.draft.cover(WORDS[token])
        assert run is not None
        pair.ngrams.learn(token, run)


def test_it_is_there_again() -> None:
    pair = fresh()
    learn(pair, range(5))
    SavedNgrams(pair, "one").save()
    again, other = fresh(), fresh()
    SavedNgrams(again, "one").load()
    SavedNgrams(other, "two").load()
    assert [dict(p.ngrams.entries()) for p in (again, other)] == [dict(pair.ngrams.entries()), {}]
    assert len(again.ngrams) == 5


def test_what_was_only_supposed_is_not_kept() -> None:
    pair = fresh()
    pair.prefill()
    assert len(pair.ngrams) == 100
    assert not pair.ngrams.fresh
    learn(pair, range(3, 5))
    SavedNgrams(pair, "pair").save()
    again = fresh()
    again.prefill()
    SavedNgrams(again, "pair").load()
    assert sorted(token for token, _ in again.ngrams.entries()) == [3, 4]
    assert not again.ngrams.fresh
    assert len(again.ngrams) == 100


def test_two_sessions_add_up() -> None:
    one, other = fresh(), fresh()
    learn(one, range(5))
    learn(other, range(3, 9))
    SavedNgrams(one, "pair").save()
    SavedNgrams(other, "pair").save()
    both = fresh()
    SavedNgrams(both, "pair").load()
    assert sorted(token for token, _ in both.ngrams.entries()) == list(range(9))


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_file_is_no_file(damage: bytes | None) -> None:
    pair = fresh()
    learn(pair, range(5))
    saved = SavedNgrams(pair, "pair")
    saved.save()
    assert saved.path is not None
    raw = saved.path.read_bytes()
    saved.path.write_bytes(raw[:-1] + b"!" if damage is None else damage)
    again = fresh()
    SavedNgrams(again, "pair").load()
    assert len(again.ngrams) == 0
    learn(pair, range(5, 6))
    saved.save()
    SavedNgrams(again, "pair").load()
    assert len(again.ngrams) == 6


def test_a_file_that_lies_makes_no_draft_wrong() -> None:
    liar = fresh()
    liar.ngrams.learn(0, (1, 2))
    learn(liar, range(1, 3))
    SavedNgrams(liar, "pair").save()
    again = fresh()
    SavedNgrams(again, "pair").load()
    assert sorted(token for token, _ in again.ngrams.entries()) == [1, 2]


def test_it_is_for_its_owner_only() -> None:
    pair = fresh()
    learn(pair, range(5))
    saved = SavedNgrams(pair, "pair")
    saved.save()
    assert saved.path is not None
    assert saved.path.stat().st_mode & 0o077 == 0


def _save_for_ever() -> None:
    pair, count = fresh(), 0
    saved = SavedNgrams(pair, "pair")
    while True:
        learn(pair, range(count % 99, count % 99 + 1))
        pair.ngrams.fresh, count = 1, count + 1
        saved.save()


def test_a_kill_in_the_middle_of_a_save_loses_nothing() -> None:
    pair = fresh()
    learn(pair, range(100))
    saved = SavedNgrams(pair, "pair")
    saved.save()
    assert saved.path is not None
    for _ in range(4):
        kill_while_writing(saved.path, _save_for_ever)
        again = fresh()
        SavedNgrams(again, "pair").load()
        assert len(again.ngrams) == 100
