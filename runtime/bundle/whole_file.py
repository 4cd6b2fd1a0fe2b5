"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import glob
import inspect
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from paceline.memory.errors import ArgumentError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

P = ParamSpec("P")
T = TypeVar("T")
_STALE = 3600.0
"""Seconds after which a piece is taken for a dead writer's, where no lock tells."""
_PATIENCE = 10.0
"""Seconds to wait for another writer at most."""
_LONGEST = 100
"""Bytes of a name that its pieces bear: file systems allow 255 in all."""


@contextmanager
def whole_file(path: Path, private: bool = True) -> Iterator[BinaryIO]:
    """A new file beside `path` that takes its place in one step when all went well.

    A link at `path` is replaced, never written through. private: for its owner only; else with the mode that
    `path` had, or the user's usual one. Folders are made, and pieces that killed writers of the same name left
    are removed. Raises OSError that names `path`, which is then what it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    piece = ""
    try:
        handle, piece = _new_piece(path, private)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:  # under its lock: without it the piece looks like a dead writer's
                os.replace(piece, path)
        if fcntl is None:
            os.replace(piece, path)
    except BaseException as error:
        if piece:
            Path(piece).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and _unknown(error.filename, path):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_atomically(path: Path, data: bytes, private: bool = True) -> None:
    """Write a whole file or nothing, as `whole_file` does."""
    with whole_file(path, private) as file:
        file.write(data)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other writers of the folder's files that ask so away while `path` is read, changed and written.

    The lock is the folder's own: it leaves nothing behind and ends with the process. Where there are no such locks, or
    somebody keeps one for longer than ten seconds, it goes on without.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a folder that cannot be read, a file system without locks
            if fcntl is not None:
                handle = os.open(path.parent, os.O_RDONLY)
                held.callback(os.close, handle)
                until = time.monotonic() + _PATIENCE
                while not _taken(handle) and time.monotonic() < until:
                    time.sleep(0.01)
        yield


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep a folder for one process that writes into it for long.

    It is made if it is not there, and gone again where an error leaves it empty. The lock is as that of `alone`. Raises
    ArgumentError where another process has it.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        if fcntl is not None:
            handle = os.open(folder, os.O_RDONLY)
            held.callback(os.close, handle)
            with contextlib.suppress(OSError):  # a file system without locks
                if not _taken(handle):
                    raise ArgumentError(
                        f"another run is writing into {folder}: wait for its end, stop it, or name another folder"
                    )
        try:
            yield
        except BaseException:
            if new:
                with contextlib.suppress(OSError):  # something is in it
                    folder.rmdir()
            raise


def claims(argument: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Claim the folder that an argument of a function names for as long as the function runs."""

    def claiming(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def claimed_first(*given: P.args, **named: P.kwargs) -> T:
            with claimed(signature.bind(*given, **named).arguments[argument]):
                return function(*given, **named)

        return claimed_first

    return claiming


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _prefix(path: Path) -> str:
    return f".{os.fsencode(path.name)[:_LONGEST].decode(errors='ignore')}."


def _unknown(name: object, path: Path) -> bool:
    """Whether nobody knows the file that an error names: none, or a piece."""
    return name is None or str(name).startswith(str(path.parent / _prefix(path)))


def _new_piece(path: Path, private: bool) -> tuple[int, str]:
    """A locked new file beside `path`."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    while True:
        piece = str(path.parent / f"{_prefix(path)}{secrets.token_hex(4)}.part")
        handle = os.open(piece, flags, 0o600 if private else 0o666)
        if fcntl is None:
            return handle, piece
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            if not private and path.is_file():
                os.fchmod(handle, path.stat().st_mode & 0o777)
            return handle, piece
        os.close(handle)  # swept between its making and its lock


def _sweep(path: Path) -> None:
    """Remove the pieces whose writers are dead."""
    for piece in path.parent.glob(f"{glob.escape(_prefix(path))}{'[0-9a-f]' * 8}.part"):
        with contextlib.suppress(OSError):
            _remove_dead(piece)


def _remove_dead(piece: Path) -> None:
    if fcntl is None:
        if time.time() - piece.stat().st_mtime > _STALE:
            piece.unlink()
        return
    handle = os.open(piece, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            if time.time() - os.fstat(handle).st_mtime <= _STALE:
                return
        piece.unlink()
    finally:
        os.close(handle)
