"""A folder that appears whole or not at all."""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import sys
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


def check_folder(out: Path) -> None:
    """Raise ValueError if files cannot be written to a folder `out`, which need not be there yet, or it is a bundle."""
    place = next(path for path in (out.absolute(), *out.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        raise ValueError(f"{place} is no folder: name another one for what is made")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{place} cannot be written to: check its permissions, or name another folder")
    if (out / MANIFEST).exists():
        raise ValueError(f"{out} is a bundle: name another folder for what is trained")


@contextmanager
def new_folder(out: Path, force: bool) -> Iterator[Path]:
    """Give a hidden folder beside `out` that becomes `out` when the block ends, and goes when it raises.

    What stood at `out` before is replaced only then, in one step where the file system can. A process that is
    killed leaves the hidden folder, which the next one to write the same `out` removes; what it had moved aside is
    put back. Raises ValueError as `check_free` does, and OSError that names a file, `out` where it was a hidden one.
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
        place(work, out, force)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if (
            isinstance(error, OSError)
            and error.errno is not None
            and _hidden(error.filename2 or error.filename, work)
        ):
            raise OSError(error.errno, error.strerror, str(out)) from error
        raise


def place(work: Path, out: Path, force: bool) -> None:
    """Let a finished folder on the same disk become `out` in one step.

    Raises as `new_folder` does; `work` stays then.
    """
    _sweep(out)
    _sync_tree(work)
    check_free(out, force)
    _swap(work, out)


def _hidden(name: object, work: Path) -> bool:
    """Whether an error names nothing, or a file that is gone."""
    return name is None or str(name).startswith(str(work))


def _swap(work: Path, out: Path) -> None:
    if out.exists() and _exchange(work, out):
        _sync(out.parent)
        shutil.rmtree(work, ignore_errors=True)  # what stood at `out`
        return
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


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where the system or the file system cannot."""
    name = {"linux": "renameat2", "darwin": "renameatx_np"}.get(sys.platform)
    if name is None or not hasattr(library := ctypes.CDLL(None), name):
        return False
    nowhere, exchange = -1, 2  # absolute paths; RENAME_EXCHANGE and RENAME_SWAP are the same number
    return bool(getattr(library, name)(nowhere, os.fsencode(one), nowhere, os.fsencode(other), exchange) == 0)


def _restore(old: Path, out: Path) -> None:
    """Put the bundle that was moved aside back, unless its place is taken already."""
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(old, out)


def _sweep(out: Path) -> None:
    """Undo what killed exports to the same place left behind."""
    name = glob.escape(out.name)
    for path in (*out.parent.glob(f".{name}.part-*"), *out.parent.glob(f".{name}.old-*")):
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
