"""What is written is written whole, whoever dies and whatever the disk says."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from paceline.memory.errors import ArgumentError
from paceline.runtime.bundle import whole_file as files
from paceline.runtime.bundle.whole_file import claimed, claims, whole_file, write_atomically

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead_writer(path: Path) -> None:
    """Leave what a writer leaves that is killed half-way."""
    code = (
        "import sys, time; from pathlib import Path; from paceline.runtime.bundle.whole_file import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as file:\n"
        "    file.write(b'private'); file.flush(); print('half', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()


@posix
@pytest.mark.parametrize("name", ["chat.json", "odd[1]*?.json", "x" * 200, "🦊" * 60])
def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    dead_writer(path)
    assert len(names(tmp_path)) == 1
    assert not path.exists()
    write_atomically(tmp_path / "another", b"")
    assert len(names(tmp_path)) == 2
    write_atomically(path, b"whole")
    assert names(tmp_path) == sorted([name, "another"])
    assert path.read_bytes() == b"whole"


@posix
def test_a_writer_that_lives_keeps_its_piece(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    with whole_file(path) as file:
        file.write(b"slow")
        (piece,) = tmp_path.iterdir()
        os.utime(piece, (0, 0))
        write_atomically(path, b"quick")
        assert path.read_bytes() == b"quick"
    assert path.read_bytes() == b"slow"
    assert names(tmp_path) == ["chat.json"]


def test_files_of_the_user_that_look_like_pieces_stay(tmp_path: Path) -> None:
    mine = [".chat.json.mybackup", ".chat.json.12345678", ".chat.json.part", ".chat.jsonx.12345678.part"]
    for name in mine:
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (0, 0))
    write_atomically(tmp_path / "chat.json", b"")
    assert names(tmp_path) == sorted([*mine, "chat.json"])


def test_without_locks_an_hour_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    fresh, stale = tmp_path / ".a.00000000.part", tmp_path / ".a.00000001.part"
    for piece, age in ((fresh, 3500), (stale, 3700)):
        piece.write_text("")
        os.utime(piece, (time.time() - age,) * 2)
    write_atomically(tmp_path / "a", b"whole")
    assert names(tmp_path) == [".a.00000000.part", "a"]
    assert (tmp_path / "a").read_bytes() == b"whole"


@posix
def test_a_link_is_replaced_and_never_written_through(tmp_path: Path) -> None:
    blob, link = tmp_path / "blob", tmp_path / "link"
    blob.write_bytes(b"shared by all revisions")
    link.symlink_to(blob)
    write_atomically(link, b"new", private=False)
    assert blob.read_bytes() == b"shared by all revisions"
    assert not link.is_symlink()
    assert link.read_bytes() == b"new"


@posix
def test_who_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "mine", b"")
        write_atomically(tmp_path / "ours", b"", private=False)
        (tmp_path / "old").write_bytes(b"")
        (tmp_path / "old").chmod(0o604)
        write_atomically(tmp_path / "old", b"", private=False)
    finally:
        os.umask(before)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in names(tmp_path)}
    assert modes == {"mine": 0o600, "ours": 0o640, "old": 0o604}


@posix
@pytest.mark.parametrize("size", [10, 200_000], ids=["at-the-end", "in-the-middle"])
def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path, size: int) -> None:
    """A limit on the size of files stands for the full disk; it holds for a process, so another one writes."""
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from paceline.runtime.bundle.whole_file import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5))\n"
        "try: write_atomically(Path(sys.argv[1]), bytes(int(sys.argv[2])))\n"
        "except OSError as error: print(error.errno, error.filename)"
    )
    done = subprocess.run([sys.executable, "-c", code, path, str(size)], capture_output=True, text=True)
    assert done.stdout == f"{errno.EFBIG} {path}\n"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["kept"]


_COPY = """
import resource, shutil, signal, sys
from paceline.errors import friendly_errors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
sys.exit(friendly_errors(lambda: shutil.copyfile(*sys.argv[1:])))
"""


@posix
def test_an_error_names_the_copy_that_could_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(100_000))
    command = [sys.executable, "-c", _COPY, tmp_path / "source", tmp_path / "copy"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{tmp_path / 'source'} to {tmp_path / 'copy'}: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_caller_s_own_errors_keep_their_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error, whole_file(tmp_path / "made") as file:
        file.write((tmp_path / "absent").read_bytes())
    assert error.value.filename == str(tmp_path / "absent")
    assert names(tmp_path) == []


@posix
@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told_by_the_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError) as error:
        write_atomically(tmp_path / "made", b"")
    assert error.value.filename == str(tmp_path / "made")


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in-place"])
@posix
def test_kills_never_leave_half_a_file(tmp_path: Path, whole: bool) -> None:
    """Written in place, the control, some kill is seen to lose it."""
    path = tmp_path / "data"
    code = (
        "import sys; from pathlib import Path; from paceline.runtime.bundle.whole_file import write_atomically\n"
        f"write = {'write_atomically' if whole else 'Path.write_bytes'}\n"
        "write(Path(sys.argv[1]), bytes(4_000_000)); print('ready', flush=True)\n"
        "while True: write(Path(sys.argv[1]), bytes(4_000_000))"
    )
    sizes = set()
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.01)
            writer.kill()
        sizes.add(path.stat().st_size)
    assert (sizes == {4_000_000}) == whole


def _hold(folder: Path, ready: Any, done: Any) -> None:
    with claimed(folder):
        ready.set()
        done.wait(30)


@posix
def test_a_folder_that_somebody_writes_into_is_refused_to_others(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "out", ready, done))
    other.start()
    try:
        assert ready.wait(30)

        @claims("folder")
        def write(text: str, folder: Path) -> str:
            return text

        with pytest.raises(ArgumentError, match="another run is writing into"):
            write("a", tmp_path / "out")
        assert write("a", folder=tmp_path / "another") == "a"
    finally:
        done.set()
        other.join()
    assert write("a", tmp_path / "out") == "a"
