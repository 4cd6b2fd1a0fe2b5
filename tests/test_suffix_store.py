"""The file of earlier sessions: what it remembers, what it forgets, what it refuses."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.memory.errors import ArgumentError
from paceline.runtime.contracts import DraftLimit, Outcome, Scored, Verdict
from paceline.runtime.drafters.store import Contexts, SuffixStore
from paceline.runtime.drafters.suffix import Suffix
from paceline.runtime.request import Request, Sampling
from paceline.runtime.tree import TokenTree

GREEDY = Request(Sampling(), "coupled", 0, 0, 1)
STORY = [5, 6, 7, 8, 9, 10, 11, 12]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "said.store"


def say(drafter: Suffix, tokens: list[int]) -> None:
    """Decode the tokens plainly, one a round."""
    drafter.begin(GREEDY)
    for end in range(1, len(tokens)):
        tree = TokenTree.root(tokens[end - 1])
        drafter.propose(tokens[:end], DraftLimit(0, 0))
        drafter.observe(Outcome(tree, Scored(np.zeros((1, 20), np.float32)), Verdict((0,), tokens[end], 0)))


def test_a_later_session_drafts_what_an_earlier_one_said(path: Path) -> None:
    drafter = Suffix(SuffixStore.open(path, "tokenizer"))
    say(drafter, STORY)
    drafter.reset()
    store = SuffixStore.open(path, "tokenizer")
    assert len(Suffix(store).propose([1, 6, 7], DraftLimit(3, 3))) == 1
    drafter._store.save()  # type: ignore[union-attr]
    later = Suffix(SuffixStore.open(path, "tokenizer"))
    assert later.propose([1, 5, 6, 7], DraftLimit(3, 3)).tokens.tolist() == [7, 8, 9, 10]


def test_a_session_finds_its_own_earlier_conversation(path: Path) -> None:
    drafter = Suffix(SuffixStore.open(path, "tokenizer"))
    say(drafter, STORY)
    drafter.reset()
    say(drafter, [1, 2, 3, 4, 1])
    drafter.reset()
    assert drafter.propose([1, 5, 6, 7], DraftLimit(2, 2)).tokens.tolist() == [7, 8, 9]


def test_the_turns_of_one_conversation_are_remembered_once(path: Path) -> None:
    store = SuffixStore.open(path, "tokenizer")
    for end in (4, 6, 8):
        store.remember(STORY[:end])
    assert len(store) == 1
    store.save()
    assert len(SuffixStore.open(path, "tokenizer")) == 1


def test_rejected_tokens_are_not_remembered(path: Path) -> None:
    store = SuffixStore.open(path, "tokenizer")
    drafter = Suffix(store)
    drafter.begin(GREEDY)
    drafter.propose([1, 2, 3], DraftLimit(2, 2))
    tree = TokenTree.chain([3, 4, 15])
    drafter.observe(Outcome(tree, Scored(np.zeros((3, 20), np.float32)), Verdict((0, 1), 5, 2)))
    drafter.reset()
    store.save()
    assert [s.tolist() for s in SuffixStore.open(path, "tokenizer")._sequences] == [[1, 2, 3, 4]]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=30), max_size=5),
    st.lists(st.integers(0, 3), max_size=12),
)
def test_contexts_find_every_place_of_the_longest_suffix(said: list[list[int]], query: list[int]) -> None:
    contexts = Contexts([np.array(s, np.uint32) for s in said])
    places, length = contexts.find(query, 8, 1000)
    best, expected = 0, []
    for n in range(1, min(8, len(query)) + 1):
        after = [
            s[e] if e < len(s) else None
            for s in said
            for e in range(n, len(s) + 1)
            if s[e - n : e] == query[-n:]
        ]
        if after:
            best, expected = n, after
    assert length == best
    assert sorted(map(str, map(contexts.after, places))) == sorted(map(str, expected))


def test_a_search_takes_a_sample_of_very_many_places() -> None:
    contexts = Contexts([np.array([1, 2] * 500, np.uint32)])
    places, length = contexts.find([1], 8, 64)
    assert length == 1
    assert 32 <= len(places) <= 64


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=20), max_size=8), st.integers(118, 400)
)
def test_the_file_keeps_the_newest_sequences_within_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, said: list[list[int]], most: int
) -> None:
    path = tmp_path_factory.mktemp("store") / "x"
    store = SuffixStore(path, "t", most)
    for tokens in said:
        store.remember(tokens)
        store.remember([])
    store.save()
    assert path.stat().st_size <= most
    kept = [s.tolist() for s in SuffixStore.open(path, "t", most)._sequences]
    assert kept[1:] == said[len(said) - len(kept) + 1 :] if kept else True
    if said and kept:
        assert said[-len(kept)][-len(kept[0]) :] == kept[0]
    room = (most - 98) // 4 - 1
    assert not said or (kept and len(kept[-1]) >= min(len(said[-1]), room))


def test_a_store_larger_than_the_limit_is_cut_when_it_is_opened(path: Path) -> None:
    store = SuffixStore.open(path, "t")
    for n in range(20):
        store.remember(list(range(n, n + 50)))
    store.save()
    small = SuffixStore.open(path, "t", 1000)
    assert len(small) == 4
    small.save()
    assert path.stat().st_size <= 1000


def test_a_store_without_room_is_an_error(path: Path) -> None:
    with pytest.raises(ValueError, match="holds nothing"):
        SuffixStore.open(path, "t", 100)


def saved(path: Path) -> bytes:
    store = SuffixStore.open(path, "tokenizer")
    store.remember(STORY)
    store.save()
    return path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_wherever_the_damage_is(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("store") / "x"
    whole = saved(path)
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:at])
    else:
        path.write_bytes(
            whole[:at] + bytes([whole[at] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[at + 1 :]
        )
    with pytest.raises(ValueError, match=r"delete|name another") as error:
        SuffixStore.open(path, "tokenizer")
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_lengths_that_do_not_add_up_are_damage_even_with_a_right_checksum(path: Path) -> None:
    body = bytearray(saved(path)[:-32])
    lengths = len(body) - 4 * len(STORY) - 4
    body[lengths] += 1
    path.write_bytes(bytes(body) + hashlib.sha256(body).digest())
    with pytest.raises(ValueError, match="damaged"):
        SuffixStore.open(path, "tokenizer")


def test_another_tokenizer_is_refused_by_name(path: Path) -> None:
    saved(path)
    with pytest.raises(ValueError, match="another tokenizer"):
        SuffixStore.open(path, "another")


def test_a_file_of_another_kind_is_never_overwritten(path: Path) -> None:
    path.write_text("my diary")
    with pytest.raises(ValueError, match="not a suffix store"):
        SuffixStore.open(path, "tokenizer")
    assert path.read_text() == "my diary"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ValueError, match="no file that can hold"):
        SuffixStore.open(path, "tokenizer")


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = saved(path)
    store = SuffixStore.open(path, "tokenizer")
    store.remember([1, 2, 3, 4, 5])

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        store.save()
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


def test_processes_that_save_at_a_time_lose_nothing_of_each_other(path: Path) -> None:
    code = """
import sys
from pathlib import Path
from paceline.runtime.drafters.store import SuffixStore
store = SuffixStore.open(Path(sys.argv[1]), "tokenizer")
print("open", flush=True)
sys.stdin.readline()
for n in range(5):
    store.remember([int(sys.argv[2]), n, 7, 8, 9])
    store.save()
"""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for i in range(3)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
    for process in running:
        process.communicate(b"\n")
        assert process.returncode == 0
    said = SuffixStore.open(path, "tokenizer")._sequences
    assert {tuple(s[:2].tolist()) for s in said} == {(i, n) for i in range(3) for n in range(5)}
    assert len(said) == 15
    assert list(path.parent.iterdir()) == [path]


def test_what_others_saved_meanwhile_is_kept_and_the_oldest_of_all_goes(path: Path) -> None:
    room = len(saved(path)) + 4 * (1 + len(STORY))
    ours, theirs = (SuffixStore.open(path, "tokenizer", room) for _ in range(2))
    for store, first in ((theirs, 1), (ours, 2)):
        store.remember([first, *STORY[1:]])
        store.save()
    assert [int(s[0]) for s in SuffixStore.open(path, "tokenizer")._sequences] == [1, 2]


def test_a_store_that_was_deleted_meanwhile_is_forgotten(path: Path) -> None:
    saved(path)
    store = SuffixStore.open(path, "tokenizer")
    path.unlink()
    store.remember([1, 2, 3, 4, 5])
    store.save()
    assert [s.tolist() for s in SuffixStore.open(path, "tokenizer")._sequences] == [[1, 2, 3, 4, 5]]


def test_a_file_that_became_another_kind_is_not_overwritten(path: Path) -> None:
    store = SuffixStore.open(path, "tokenizer")
    path.write_text("my diary")
    store.remember(STORY)
    with pytest.raises(ArgumentError, match="not a suffix store"):
        store.save()
    assert path.read_text() == "my diary"


def test_the_file_is_for_its_owner_only(path: Path) -> None:
    saved(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_tokens_outside_the_vocabulary_are_refused(path: Path) -> None:
    saved(path)
    assert len(SuffixStore.open(path, "tokenizer", vocab=13)) == 1
    with pytest.raises(ValueError, match="damaged"):
        SuffixStore.open(path, "tokenizer", vocab=12)
