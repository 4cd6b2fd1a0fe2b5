from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from paceline import transcript as transcripts
from paceline.transcript import Transcript, load, load_bytes, save

CHAT = Transcript(
    system="Be kind.",
    messages=(
        {"role": "user", "content": "Tell me about <|im_end|> and 😀\n\0"},
        {"role": "assistant", "content": "No."},
    ),
    bundle="storyteller",
)


def test_a_chat_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chat.json"
    save(path, CHAT)
    assert load(path) == CHAT
    save(path, Transcript(system=None, messages=()))
    assert load(path) == Transcript(system=None, messages=())
    assert [p.name for p in path.parent.iterdir()] == ["chat.json"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"paceline_chat": 1}',
        b'{"paceline_chat": 2, "system": null, "messages": []}',
        b'{"paceline_chat": 3, "system": null, "messages": []}',
        b'{"paceline_chat": 0, "system": null, "messages": []}',
        b'{"paceline_chat": 1, "system": null, "messages": [], "more": 1}',
        b'{"system": null, "messages": []}',
        b'{"paceline_chat": 1, "system": null, "messages": [{"role": "user"}]}',
        b'{"paceline_chat": 1, "system": null, "messages": [{"role": "tool", "content": ""}]}',
        b'{"paceline_chat": 1, "system": null, "messages": [{"role": "user", "content": 3}]}',
        b'{"paceline_chat": 1, "system": null, "messages": [{"role": "user", "content": "a", "x": "y"}]}',
        b'{"paceline_chat": 1, "system": null, "messages": [{"role": "user", "content": "a"}',
    ],
    ids=range(17),
)
def test_a_damaged_or_foreign_file_is_one_line_and_stays_as_it_is(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(raw)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="left alone"):
        save(path, CHAT)
    assert path.read_bytes() == raw


def test_places_that_cannot_hold_a_chat_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no saved chat"):
        load(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="no saved chat"):
        load(tmp_path)
    with pytest.raises(ValueError, match="folder"):
        save(tmp_path, CHAT)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="cannot be written"):
        save(tmp_path / "file" / "chat.json", CHAT)


def test_an_interrupted_save_leaves_the_old_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat.json"
    save(path, CHAT)

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(path, Transcript(system=None, messages=()))
    assert load(path) == CHAT
    assert [p.name for p in tmp_path.iterdir()] == ["chat.json"]


def test_writing_in_place_would_lose_the_old_chat(tmp_path: Path) -> None:
    """The negative control of the test above."""
    path = tmp_path / "chat.json"
    save(path, CHAT)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        load(path)


def test_a_chat_that_would_not_load_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    save(path, CHAT)
    with pytest.raises(ValueError, match="turn 1"):
        save(path, Transcript(system=None, messages=({"role": "nobody", "content": ""},)))
    with pytest.raises(ValueError, match="half a character"):
        save(path, Transcript(system=None, messages=({"role": "user", "content": "\ud800"},)))
    assert load(path) == CHAT


def test_the_form_is_readable_json(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    save(path, CHAT)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["paceline_chat"] == transcripts.VERSION
    assert content["messages"][1]["content"] == "No."


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    save(path, Transcript(None, ({"role": "user", "content": 'Pay 1000 to "12345"\t\x1b.'},)))
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        raw = bytearray(whole)
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"damaged|newer"):
            load_bytes(bytes(raw), path)
    for cut in range(len(whole)):
        with pytest.raises(ValueError, match="damaged"):
            load_bytes(whole[:cut], path)


def test_a_chat_of_the_first_form_is_read_and_saved_in_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text(
        '{"system": "Be kind.", "messages": [{"role": "user", "content": "a"}], "bundle": "b", "paceline_chat": 1}'
    )
    old = load(path)
    assert (old.system, old.messages, old.bundle) == ("Be kind.", ({"role": "user", "content": "a"},), "b")
    save(path, Transcript(old.system, old.messages, old.bundle))
    assert json.loads(path.read_text())["paceline_chat"] == 2
    assert load(path).messages == old.messages


def test_what_somebody_changed_by_hand_says_how_it_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    save(path, CHAT)
    changed = path.read_text(encoding="utf-8").replace("kind", "brief")
    with pytest.raises(ValueError, match=r"its checksum is wrong .* write 1 for paceline_chat"):
        load_bytes(changed.encode(), path)
    content = json.loads(changed)
    del content["sha256"]
    assert load_bytes(json.dumps(content | {"paceline_chat": 1}).encode(), path).system == "Be brief."


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\ud800", "\ufffd"),
        (r"a\uDC00b\uD83D", "a\ufffdb\ufffd"),
        (r"\ud83d\ude00", "😀"),
        (r"\\ud800", r"\ud800"),
        (r"\\\ud83dx", "\\\ufffdx"),
    ],
)
def test_half_a_character_in_a_file_is_read_as_the_replacement(
    written: str, read: str, tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    path.write_text(
        f'{{"paceline_chat": 1, "system": null, "messages": [{{"role": "user", "content": "{written}"}}]}}'
    )
    chat = load(path)
    assert chat.messages[0]["content"] == read
    again = Transcript(chat.system, chat.messages)
    save(path, again)
    assert load(path) == again
