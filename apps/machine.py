"""The machine that a figure was measured on."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = ("paceline", "numpy", "tokenizers")


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(("model name", "Hardware", "Model")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what computes."""
    from paceline.runtime.device import runtime_version

    name, _, number = runtime_version().rpartition(" ")
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in _PACKAGES}, name: number}
