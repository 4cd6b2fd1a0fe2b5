"""Ctrl-C: the first one raises KeyboardInterrupt, impatient ones after it cannot disturb the cleaning up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def _first(number: int, frame: FrameType | None) -> None:
    # Python takes its own handlers away at exit; an ignored signal stays ignored to the very end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def first_interrupt_counts(until_exit: bool) -> Iterator[None]:
    """Ignore Ctrl-C after the first one; with `until_exit` also after the block, else as it was before.

    Does nothing where Ctrl-C is ignored already (as by nohup), or outside the main thread.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _first)
    _listening.set()
    try:
        yield
    finally:
        _listening.clear()
        signal.signal(signal.SIGINT, signal.SIG_IGN if until_exit else before)


def listen_again() -> None:
    """The interrupt was dealt with: the next one counts."""
    if _listening.is_set():
        signal.signal(signal.SIGINT, _first)


_listening = threading.Event()
