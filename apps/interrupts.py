"""Ctrl-C raises KeyboardInterrupt; impatient ones right after it cannot disturb the cleaning up.

Where native code holds Python up the second Ctrl-C ends the process.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

from paceline.runtime.native_calls import watch_native_calls

_IMPATIENCE = 1.0
"""Seconds in which further interrupts count as the same one."""
_KNOWN = sys.platform == "linux" and os.uname().machine in {"x86_64", "aarch64"}
"""Whether it is known here how a signal is handed back to the system."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if now - _last[0] > _IMPATIENCE:
        _last[0] = now
        raise KeyboardInterrupt


@contextmanager
def first_interrupt_counts(until_exit: bool) -> Iterator[None]:
    """Take Ctrl-Cs that follow each other closely as one; with `until_exit` ignore it after the block.

    Does nothing where Ctrl-C is ignored already (as by nohup), or outside the main thread.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    told, sys.unraisablehook = sys.unraisablehook, _tell_unless_interrupted
    if _KNOWN:
        watch_native_calls(_second_interrupt_ends)
    try:
        listen_again()
        yield
    finally:
        watch_native_calls(None)
        sys.unraisablehook = told
        signal.signal(signal.SIGINT, signal.SIG_IGN if until_exit else before)


def interrupted() -> bool:
    """Whether an interrupt was raised that nobody has dealt with: what failed since then failed because of it."""
    return _last[0] > -math.inf


def listen_again() -> None:
    """The interrupt was dealt with: the next one counts."""
    _last[0] = -math.inf


def _tell_unless_interrupted(failed: sys.UnraisableHookArgs) -> None:
    """An interrupt that came where nothing can be raised, as in a callback of `weakref`, is known to `interrupted`."""
    if not (isinstance(failed.exc_value, KeyboardInterrupt) and interrupted()):
        sys.__unraisablehook__(failed)


def _second_interrupt_ends() -> AbstractContextManager[None]:
    """Python handles the first Ctrl-C when the call returns; one more before that is the system's, and kills."""
    mine = signal.getsignal(signal.SIGINT) is _interrupt
    if not mine or threading.current_thread() is not threading.main_thread():
        return nullcontext()
    from paceline.sigaction import handled_once

    return handled_once(signal.SIGINT)


_last = [-math.inf]
"""When an interrupt was last raised, on the monotonic clock."""
