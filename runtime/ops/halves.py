"""Rounding of new cache rows to half precision by the native library: the same bits as numpy's, many at a time."""

from __future__ import annotations

import ctypes
from functools import cache

from paceline.memory.cache import Halves
from paceline.runtime.ops import library


@cache
def halves() -> Halves | None:
    """For `KeyValueCache`; None where there is no library, or one of another age."""
    handle = library.handle()
    if handle is None or not hasattr(handle, "paceline_halves"):
        return None
    function = handle.paceline_halves
    function.restype = None
    function.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
    ]  # fmt: skip
    made: Halves = function
    return made
