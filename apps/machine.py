"""The machine that a figure was measured on."""

from __future__ import annotations

import platform

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
    return platform.machine()


def versions() -> dict[str, str]:
    """Versions of what computes."""
    from importlib import metadata

    from paceline.runtime.model.ort import runtime_version

    name, _, number = runtime_version().rpartition(" ")
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in _PACKAGES}, name: number}


def peak_memory_text(peak: int | None) -> str:
    """Peak memory for people."""
    return "not told by this system" if peak is None else f"{peak / 1e6:.0f} MB"
