"""ONNX Runtime itself: imported at one place, and which package it came with."""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

from paceline.memory.errors import Error

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")
"""What pip calls it: each brings the same module."""


class DeviceError(Error):
    """A device that cannot be used; the message names the cause and the remedy."""


def onnxruntime() -> Any:
    """The onnxruntime module. Raises DeviceError that names the extra where there is none.

    KeyboardInterrupt passes, although its C++ part turns that into an ImportError.
    """
    # Its wheels can collect and send usage data: a program that runs models at home must not.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # Its C++ part imports numpy, and would print and swallow an interrupt there.
    import numpy  # noqa: F401

    try:
        import onnxruntime as ort
    except ImportError as error:
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise DeviceError(
            f"ONNX Runtime cannot be imported ({error}): install one with pip install 'paceline[cpu]' "
            "(or [openvino], [webgpu], [qnn], [cuda], [directml] for an accelerator)"
        ) from None
    ort.set_default_logger_severity(4)
    return ort


def runtime_version() -> str:
    """Version of the installed ONNX Runtime package, whichever name it goes by."""
    version: str = onnxruntime().__version__
    for package in _PACKAGES:
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return f"onnxruntime {version}"


def is_of_onnxruntime(error: Exception) -> bool:
    """Whether ONNX Runtime raised it by a class of its own; its Python binding raises plain RuntimeError too."""
    return type(error).__module__.startswith("onnxruntime")


def first_line(error: Exception) -> str:
    """What it says, in one line of printable characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "".join(c for c in lines[0][:300] if c.isprintable())
