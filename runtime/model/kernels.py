"""Which kernels sessions on the CPU run with."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.runtime.ops import library


@dataclass(frozen=True, slots=True)
class Kernels:
    """The project's own CPU kernels: what runs in words, the instruction set, and those that could be used."""

    in_use: str
    level: str | None
    levels: tuple[str, ...]


def kernels() -> Kernels:
    """Which kernels sessions on the CPU get. Raises ValueError if PACELINE_KERNELS names unknown ones."""
    return Kernels(library.kernels_in_use(), library.level(), library.levels())
