"""Calls of native code that holds Python up: what the process does about signals meanwhile is for its owner to say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Watch = Callable[[], AbstractContextManager[None]]
_watch: list[Watch] = [nullcontext]


def native_call() -> AbstractContextManager[None]:
    """Entered around a call during which no signal handler of Python's can run, however long it takes."""
    return _watch[0]()


def watch_native_calls(watch: Watch | None) -> None:
    """Enter `watch()` around every such call; None for a process that wants nothing of the kind."""
    _watch[0] = watch or nullcontext
