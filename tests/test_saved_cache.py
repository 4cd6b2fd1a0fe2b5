"""A session's cache in a file: what comes back is what was there, and nothing else is ever taken for it."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest
from command_line import BUNDLE, call, copied_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline.runtime.loading import load
from paceline.runtime.manifest import TOKENIZER, File, read_manifest, write_manifest
from paceline.runtime.request import Sampling
from paceline.runtime.session import Session

PROMPT = "Once upon a time there was a small dog who lived in a big house. One day the dog"
REFUSED = r"damaged|no saved cache|another bundle|newer paceline|raise --context|start with --cache"
FORMS = ("fp32", "fp16", "int8")
SHORT = ("chat", "--max-tokens", "12")


def answer(session: Session, prompt: str | list[int] = PROMPT) -> list[int]:
    events = session.generate(prompt, max_tokens=24, sampling=Sampling())
    return [event.token for event in events if event.token is not None]


@pytest.fixture(scope="module", params=FORMS)
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, list[int]]:
    """A form, a file, and the answer that was given when it was saved."""
    path = tmp_path_factory.mktemp("saved") / "dog.cache"
    with load(BUNDLE, drafter="chain", cache=request.param) as session:
        told = answer(session)
        assert session.save(path) == path.stat().st_size
    return request.param, path, told


def test_what_was_saved_is_not_read_again(saved: tuple[str, Path, list[int]]) -> None:
    form, path, told = saved
    with (
        load(BUNDLE, drafter="chain", cache=form) as session,
        load(BUNDLE, drafter="none", cache=form) as fresh,
    ):
        rows = session.restore(path)
        prompt = [*session.text.encode(PROMPT), *told]
        assert len(prompt) - 2 <= rows <= len(prompt)
        more = answer(session, prompt)
        assert session.stats.reused_tokens == min(rows, len(prompt) - 1)
        assert more == answer(fresh, prompt)
        assert fresh.stats.reused_tokens == 0
        np.testing.assert_array_equal(
            session._target.cache.stack[:, :, :rows], fresh._target.cache.stack[:, :, :rows]
        )


def test_every_flipped_bit_is_refused_and_changes_nothing(
    saved: tuple[str, Path, list[int]], tmp_path: Path
) -> None:
    form, path, _ = saved
    good = path.read_bytes()
    other = tmp_path / "flipped"
    rng = np.random.default_rng(1)
    spots = [*range(100), *rng.integers(100, len(good), 60).tolist(), len(good) - 1]
    with load(BUNDLE, drafter="none", cache=form) as session:
        before = answer(session)
        tokens, rows = list(session._target.tokens), session._target.cache.stack.copy()
        for spot in spots:
            raw = bytearray(good)
            raw[spot] ^= 1 << int(rng.integers(8))
            other.write_bytes(raw)
            with pytest.raises(ValueError, match=REFUSED) as refused:
                session.restore(other)
            assert "\n" not in str(refused.value)
        assert session._target.tokens == tokens
        np.testing.assert_array_equal(session._target.cache.stack, rows)
        assert answer(session) == before


@given(keep=st.integers(0, 10**6), more=st.binary(max_size=9))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_of_another_length_is_refused(
    saved: tuple[str, Path, list[int]], tmp_path: Path, keep: int, more: bytes
) -> None:
    form, path, _ = saved
    good = path.read_bytes()
    other = tmp_path / "other"
    raw = good[: keep % len(good)] + more
    other.write_bytes(raw)
    session = cached_session(form)
    with pytest.raises(ValueError, match=REFUSED):
        session.restore(other)


_SESSIONS: dict[str, Session] = {}


def cached_session(form: str) -> Session:
    if form not in _SESSIONS:
        _SESSIONS[form] = load(BUNDLE, drafter="none", cache=form)
    return _SESSIONS[form]


def test_a_count_beyond_all_memory_allocates_nothing(
    saved: tuple[str, Path, list[int]], tmp_path: Path
) -> None:
    form, path, _ = saved
    raw = bytearray(path.read_bytes())
    at = struct.calcsize("<16sB32s8sIII")
    raw[at : at + 8] = (2**62).to_bytes(8, "little")
    (tmp_path / "huge").write_bytes(raw)
    with pytest.raises(ValueError, match=REFUSED):
        cached_session(form).restore(tmp_path / "huge")


def test_another_form_a_shorter_context_and_a_newer_version_are_refused(
    saved: tuple[str, Path, list[int]], tmp_path: Path
) -> None:
    form, path, _ = saved
    other = FORMS[(FORMS.index(form) + 1) % 3]
    with pytest.raises(ValueError, match=f"start with --cache {form}"):
        cached_session(other).restore(path)
    with (
        load(BUNDLE, drafter="none", cache=form, context=16) as session,
        pytest.raises(ValueError, match="16"),
    ):
        session.restore(path)
    raw = bytearray(path.read_bytes())
    raw[16] = 9
    (tmp_path / "newer").write_bytes(raw)
    with pytest.raises(ValueError, match="newer paceline"):
        cached_session(form).restore(tmp_path / "newer")


def test_another_bundle_is_refused(tmp_path: Path, saved: tuple[str, Path, list[int]]) -> None:
    form, path, _ = saved
    folder = copied_bundle(tmp_path)
    with load(folder, drafter="none", cache=form) as same:  # the same bundle in another place is the same
        assert same.restore(path) > 0
    with (folder / TOKENIZER).open("ab") as file:
        file.write(b"\n")
    raw, manifest = (folder / TOKENIZER).read_bytes(), read_manifest(folder)
    files = manifest.files | {TOKENIZER: File(len(raw), hashlib.sha256(raw).hexdigest())}
    write_manifest(msgspec.structs.replace(manifest, files=files), folder)
    with (
        load(folder, drafter="none", cache=form) as other,
        pytest.raises(ValueError, match="another bundle"),
    ):
        other.restore(path)
    shutil.rmtree(folder)


def test_nothing_else_is_overwritten_and_no_half_file_is_left(tmp_path: Path) -> None:
    session = cached_session("fp32")
    answer(session)
    mine = tmp_path / "notes.txt"
    mine.write_text("mine")
    with pytest.raises(ValueError, match="left alone"):
        session.save(mine)
    assert mine.read_text() == "mine"
    with pytest.raises(ValueError, match="folder"):
        session.save(tmp_path)
    with pytest.raises(ValueError, match="no saved cache"):
        session.restore(tmp_path / "none")
    with pytest.raises(ValueError, match="no saved cache"):
        session.restore(mine)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="no saved cache"):
            session.restore(tmp_path / "pipe")
    full = Path("/dev/full/x")
    with pytest.raises(ValueError, match="cannot be written"):
        session.save(full)
    session.save(tmp_path / "a.cache")
    session.save(tmp_path / "a.cache")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.cache", "notes.txt", "pipe"]


def test_an_empty_session_saves_and_comes_back(tmp_path: Path) -> None:
    with load(BUNDLE, drafter="none") as session:
        session.save(tmp_path / "empty")
        assert session.restore(tmp_path / "empty") == 0


def test_a_saved_chat_brings_its_cache(tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    first = call(*SHORT, stdin=f"Tell me of a cat.\n/save {file}\nAnd then?\n")
    second = call(*SHORT, stdin=f"/load {file}\nAnd then?\n/stats\n")
    assert first.code == second.code == 0, first.err + second.err
    assert first.out.splitlines()[-1] in second.out
    assert "of them from the cache" in second.out
    other = call(*SHORT, "--cache", "int8", stdin=f"/load {file}\nAnd then?\n/stats\n")
    assert other.code == 0
    assert "of them from the cache" not in other.out
