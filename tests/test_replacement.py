"""A bundle is replaced in one step, or stays as it was."""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest

import paceline.export.atomic as atomic
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.manifest import BundleError


def _old_bundle(out: Path) -> None:
    out.mkdir()
    (out / "manifest.json").write_text("old")


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("late", [False, True])
def test_an_interrupted_replacement_leaves_one_whole_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, late: bool
) -> None:
    out, rename, calls = tmp_path / "out", os.rename, []
    _old_bundle(out)

    def interrupted(source: Path, to: Path) -> None:
        calls.append(source)
        if len(calls) == at and not late:
            raise KeyboardInterrupt
        rename(source, to)
        if len(calls) == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic.new_folder(out, force=True) as work:
        (work / "manifest.json").write_text("new")
    assert (out / "manifest.json").read_text() == ("new" if (at, late) == (2, True) else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no exchange of two names")
@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "renamed"])
def test_a_bundle_that_is_replaced_is_there_at_every_moment(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two renames, the control, there is a moment without one."""
    out, missing = tmp_path / "out", []
    _old_bundle(out)
    folders, over, rename = os.listdir(tmp_path), threading.Event(), os.rename

    def slowly(source: Path, to: Path) -> None:
        rename(source, to)
        time.sleep(0.02)

    def look() -> None:
        while not over.is_set():
            if not (out / "manifest.json").is_file():
                missing.append(1)

    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", slowly)
    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(20):
            with atomic.new_folder(out, force=True) as work:
                (work / "manifest.json").write_text(str(number))
            assert (out / "manifest.json").read_text() == str(number)
    finally:
        over.set()
        reader.join()
    assert bool(missing) != exchange
    assert os.listdir(tmp_path) == folders


@pytest.mark.parametrize("named", [True, False])
def test_a_full_disk_is_told_by_the_folder_that_was_asked_for(tmp_path: Path, named: bool) -> None:
    def export() -> None:
        with atomic.new_folder(tmp_path / "out", force=False) as work:
            raise OSError(errno.ENOSPC, "full", *([str(work / "target")] if named else []))

    with pytest.raises(OSError, match="full") as raised:
        export()
    assert raised.value.filename == str(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out", "out[1]", "*", "?"])
def test_a_bundle_that_a_killed_export_moved_aside_is_put_back(tmp_path: Path, name: str) -> None:
    out, process = tmp_path / name, 2**22 + 1  # beyond the largest process number of Linux
    (tmp_path / f".{name}.part-{process}").mkdir()
    others = [f".out1.old-{process}", f".out1.part-{process}"]
    for other in others:
        (tmp_path / other).mkdir()
    _old_bundle(tmp_path / f".{name}.old-{process}")
    with pytest.raises(BundleError, match=f"{re.escape(f'.{name}.old-{process}')}: rename it"):
        open_bundle(out)
    with pytest.raises(ValueError, match="exists already"), atomic.new_folder(out, force=False):
        pass
    assert (out / "manifest.json").read_text() == "old"
    _old_bundle(tmp_path / f".{name}.old-{process}")
    with atomic.new_folder(out, force=True) as work:
        (work / "manifest.json").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, *others])
