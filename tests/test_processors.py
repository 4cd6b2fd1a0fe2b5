"""Threads by default: a quota of processor time counts, whatever shows it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.runtime.model.processors import default_threads, physical_cores, quota

NEW, OLD, BOTH = "0::{}\n", "4:memory:/a\n3:cpu,cpuacct:{}\n1:name=systemd:/b\n", "2:cpu:{}\n0::/elsewhere\n"


class System:
    """What the kernel shows of a process, written into files."""

    def __init__(self, folder: Path, cgroup: str, path: str, root: str = "/") -> None:
        self.process, self.mount = folder / "self", folder / "a mount"
        self.process.mkdir()
        self.mount.mkdir()
        (self.process / "cgroup").write_text(cgroup.format(path))
        place = str(self.mount).replace(" ", "\\040")
        kinds = {NEW: "cgroup2 cgroup rw", OLD: "cgroup cgroup rw,cpu,cpuacct", BOTH: "cgroup cgroup rw,cpu"}
        (self.process / "mountinfo").write_text(
            "22 1 0:20 / / rw - overlay overlay rw\n"
            f"30 22 0:26 / {folder}/memory rw shared:9 - cgroup cgroup rw,memory\n"
            f"31 22 0:27 {root} {place} rw,relatime shared:10 - {kinds[cgroup]}\n"
        )
        self._new = cgroup == NEW

    def limit(self, group: str, spent: str, period: int = 100_000) -> None:
        folder = self.mount / group
        folder.mkdir(parents=True, exist_ok=True)
        if self._new:
            (folder / "cpu.max").write_text(f"{spent} {period}\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text(f"{spent.replace('max', '-1')}\n")
            (folder / "cpu.cfs_period_us").write_text(f"{period}\n")

    def quota(self) -> float:
        return quota(self.process)


@pytest.mark.parametrize("cgroup", [NEW, OLD, BOTH], ids=["2", "1", "hybrid"])
def test_the_least_quota_of_a_group_and_those_around_it_counts(tmp_path: Path, cgroup: str) -> None:
    system = System(tmp_path, cgroup, "/pods/one/box")
    assert system.quota() > 10_000
    system.limit("pods/one/box", "max")
    assert system.quota() > 10_000
    system.limit("pods/one/box", "400000")
    assert system.quota() == 4
    system.limit("pods", "75000", 50_000)
    assert system.quota() == 1.5
    system.limit("pods/another", "1000")
    assert system.quota() == 1.5


@pytest.mark.parametrize("cgroup", [NEW, OLD], ids=["2", "1"])
@pytest.mark.parametrize(
    ("path", "root"),
    [("/", "/"), ("/docker/f00", "/docker/f00"), ("/../sibling", "/"), ("/docker/f00", "/docker/other")],
    ids=["its-root", "the-outer-name", "beside-its-root", "another"],
)
def test_a_container_sees_its_group_as_the_root(tmp_path: Path, cgroup: str, path: str, root: str) -> None:
    system = System(tmp_path, cgroup, path, root)
    system.limit("", "200000")
    assert system.quota() == 2


@pytest.mark.parametrize(
    "content", ["", "max", "0 100000", "100000 0", "-1 100000", "nan 5", "100000", "1 2 3"]
)
def test_what_makes_no_sense_is_no_quota(tmp_path: Path, content: str) -> None:
    system = System(tmp_path, NEW, "/")
    (system.mount / "cpu.max").write_text(content)
    assert system.quota() > 10_000


@pytest.mark.parametrize("file", ["cgroup", "mountinfo"])
@pytest.mark.parametrize("content", [None, "", "\n::\n", "nonsense - \n", "\udcff:\n"])
def test_a_system_that_does_not_tell_has_no_quota(tmp_path: Path, file: str, content: str | None) -> None:
    system = System(tmp_path, NEW, "/")
    system.limit("", "100000")
    (system.process / file).unlink()
    if content is not None:
        (system.process / file).write_bytes(os.fsencode(content))
    assert system.quota() > 10_000


@contextlib.contextmanager
def group(processors: float) -> Iterator[Path]:
    """A real control group with this quota. Skips where none can be made."""
    place = Path("/sys/fs/cgroup")
    old = not (place / "cgroup.controllers").exists()
    folder = place / ("cpu" if old else "") / f"paceline-{os.getpid()}"
    files = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": f"{processors * 1e5:.0f}"}
    try:
        folder.mkdir()
        for name, value in (files if old else {"cpu.max": f"{processors * 1e5:.0f} 100000"}).items():
            (folder / name).write_text(value)
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no control group can be made: {error}")
    try:
        yield folder
    finally:
        folder.rmdir()


@pytest.mark.skipif(sys.platform != "linux", reason="control groups")
@pytest.mark.parametrize(("processors", "threads"), [(1.0, 1), (0.5, 1), (1.9, 1), (512.0, physical_cores())])
def test_a_real_quota_bounds_the_threads(processors: float, threads: int) -> None:
    code = "from paceline.runtime.model.processors import default_threads; print(default_threads())"
    with group(processors) as folder:
        line = f'echo $$ >{folder}/cgroup.procs && "$@"'
        done = subprocess.run(
            ["sh", "-c", line, "sh", sys.executable, "-c", code], capture_output=True, text=True
        )
    assert done.stdout == f"{threads}\n"


def test_without_a_quota_it_is_one_thread_a_core() -> None:
    assert 1 <= default_threads() <= physical_cores()
