"""What the system does about a signal, beyond what Python's signal module can say. Linux on x86-64 and ARM64."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_RESETHAND = 0x80000000


class _Action(ctypes.Structure):
    """struct sigaction of glibc and musl (signal.h)."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_uint),
        ("restorer", ctypes.c_void_p),
    )


_sigaction = ctypes.CDLL(None, use_errno=True).sigaction


@contextmanager
def handled_once(number: signal.Signals) -> Iterator[None]:
    """In the block the handler takes the signal once, then the signal does what it does by default."""
    usual = _Action()
    if _sigaction(number, None, ctypes.byref(usual)):
        yield
        return
    once = _Action(usual.handler, usual.mask, usual.flags | _RESETHAND, usual.restorer)
    _sigaction(number, ctypes.byref(once), None)
    try:
        yield
    finally:
        _sigaction(number, ctypes.byref(usual), None)
