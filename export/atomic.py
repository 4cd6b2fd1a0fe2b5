"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paceline.runtime.manifest import MANIFEST


def check_free(out: Path, force: bool) -> None:
    """Raise ValueError if `out` exists; with `force` only if it holds anything but a bundle."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise ValueError(f"{out} exists already: name another folder, or replace it with --force")
    if out.is_symlink() or not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise ValueError(f"{out} is not a bundle, so --force does not replace it: name another folder")


@contextmanager
def new_folder(out: Path, force: bool) -> Iterator[Path]:
    """Give a hidden folder beside `out` that becomes `out` when the block ends, and goes when it raises.

    What stood at `out` before is replaced only then. A process that is killed leaves the hidden folder, which
    the next one to write the same `out` removes; what it had moved aside is put back.
    Raises ValueError as `check_free` does.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    check_free(out, force)
    work = out.parent / f".{out.name}.part-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
        _sync_tree(work)
        check_free(out, force)
        _swap(work, out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _swap(work: Path, out: Path) -> None:
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    try:
        if out.exists():
            os.rename(out, old)
        os.rename(work, out)
    except BaseException:  # Ctrl-C too, between any two steps
        if old.exists():
            _restore(old, out)
        raise
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _restore(old: Path, out: Path) -> None:
    """Put the bundle that was moved aside back, unless its place is taken already."""
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(old, out)


def _sweep(out: Path) -> None:
    """Undo what killed exports to the same place left behind."""
    for path in (*out.parent.glob(f".{out.name}.part-*"), *out.parent.glob(f".{out.name}.old-*")):
        number = path.name.rpartition("-")[2]
        if number.isdigit() and not _alive(int(number)):
            if path.name.startswith(f".{out.name}.old-"):
                _restore(path, out)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
