"""The shared library of native kernels: found, loaded, and registered in sessions of ONNX Runtime."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from paceline.runtime.ops.packed_matmul import VERSION

VARIABLE = "PACELINE_KERNELS"
"""`none` runs the ONNX function bodies; a level of `levels()` is taken instead of the best one."""

_PATH = Path(__file__).with_name("kernels" + {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so"))
_BODIES = "ONNX function bodies"
_refusals: list[str] = []


@dataclass(frozen=True, slots=True)
class _Loaded:
    handle: ctypes.CDLL | None
    lacking: str = ""
    """Why there is no handle."""


def available() -> bool:
    """Whether sessions can have the kernels. Raises ValueError if PACELINE_KERNELS names none of `levels()`."""
    return handle() is not None


def kernels_in_use() -> str:
    """Which kernels run on the CPU: `native (avx512vnni)`, or `ONNX function bodies: ` and the reason."""
    if (name := level()) is not None:
        return f"native ({name})"
    return f"{_BODIES}: {_refusals[0] if _refusals else _load().lacking}"


def register(options: Any) -> None:
    """Let sessions opened with these `onnxruntime.SessionOptions` run the kernels; only for the CPU.

    Without a library nothing happens, and the function bodies of the graph run. If ONNX Runtime refuses
    the library, that is logged as a warning, and `available` and `kernels_in_use` tell from then on.
    Raises ValueError if PACELINE_KERNELS names none of `levels()`.
    """
    if not available():
        return
    try:
        options.register_custom_ops_library(str(_PATH))
    except Exception as error:
        _refusals.append(_warned(f"ONNX Runtime refuses {_PATH}: {_first_line(error)}"))


def handle() -> ctypes.CDLL | None:
    """The library itself, for its other exported functions; None where it is not available."""
    return None if _refusals else _load().handle


def level() -> str | None:
    """The instruction set that the kernels use now, or None without kernels."""
    return None if (kernels := handle()) is None else _text(kernels.paceline_level())


def levels() -> tuple[str, ...]:
    """The instruction sets that this machine and this library share, slowest first; () without kernels."""
    return () if (kernels := handle()) is None else _levels(kernels)


def use(name: str) -> None:
    """Take one of `levels()` from now on in the whole process. The results have the same bits in all of them.

    Raises ValueError if it is none of them.
    """
    kernels = handle()
    if kernels is None or kernels.paceline_use(name.encode()) != 0:
        raise ValueError(f"this machine has no kernels {name!r}: {', '.join(levels()) or kernels_in_use()}")


@cache
def _load() -> _Loaded:
    asked = os.environ.get(VARIABLE, "")
    if asked == "none":
        return _Loaded(None, f"{VARIABLE}=none")
    if not _PATH.exists():
        return _Loaded(None, "no native library was built (a C++ compiler was missing at installation)")
    try:
        kernels = ctypes.CDLL(str(_PATH))
        kernels.paceline_level.restype = kernels.paceline_levels.restype = ctypes.c_char_p
        version = int(kernels.paceline_version())
    except (OSError, AttributeError) as error:
        return _Loaded(None, _warned(f"{_PATH} does not load: {_first_line(error)}"))
    if version != VERSION:
        lacking = f"{_PATH} reads packed layout {version}, not {VERSION}: install Paceline again"
        return _Loaded(None, _warned(lacking))
    if asked and kernels.paceline_use(asked.encode()) != 0:
        raise ValueError(
            f"{VARIABLE} is {asked!r}, but this machine has: none, {', '.join(_levels(kernels))}"
        )
    return _Loaded(kernels)


def _levels(kernels: ctypes.CDLL) -> tuple[str, ...]:
    return tuple(_text(kernels.paceline_levels()).split(","))


def _text(value: bytes) -> str:
    return value.decode()


def _warned(message: str) -> str:
    """Say once that kernels which were built cannot run; logging prints it to stderr where nobody listens."""
    logging.getLogger("paceline").warning(
        "paceline: warning: %s; the %s run instead, slower", message, _BODIES
    )
    return message


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
