"""A memory budget as the user gives it, and what the process takes at the moment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from paceline.memory.errors import ArgumentError
from paceline.memory.size import parse_size

Scope = Literal["process", "growth"]


@dataclass(frozen=True, slots=True)
class Budget:
    """bytes for the whole process, or for its growth from `start` on."""

    bytes: int
    start: int = 0

    @property
    def total(self) -> int:
        """Bytes that the process may reach."""
        return self.bytes + self.start


def check_scope(scope: object) -> None:
    """Raise ValueError for what is no scope."""
    if scope not in ("process", "growth"):
        raise ArgumentError(f"memory_scope is growth or process, not {scope!r:.40}")


def budget_of(memory: str | int, scope: Scope) -> Budget:
    """Understand `900MB`; growth counts from this call on. Raises ValueError for what is no size or no scope."""
    check_scope(scope)
    if isinstance(memory, bool) or not isinstance(memory, str | int):
        raise ArgumentError(f"memory is a size such as '900MB' or a number of bytes, not {memory!r:.40}")
    size = parse_size(memory) if isinstance(memory, str) else memory
    if size < 1:
        raise ArgumentError(f"a budget of {size} bytes holds nothing: write 900MB, 1.5GB or 800MiB")
    return Budget(size, resident() if scope == "growth" else 0)


def resident() -> int:
    """Bytes of this process in memory now; 0 where the system does not tell."""
    try:
        return int(_told("statm").split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def peak_memory() -> int | None:
    """Peak resident bytes of this process (VmHWM), None where the system does not tell."""
    try:
        _, _, rest = _told("status").partition(b"VmHWM:")
        return int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None


def _told(name: str) -> bytes:
    """What the system tells of this process.

    Not by `open`: an answer that is given up while Python exits asks too, and that name is gone by then.
    """
    handle = os.open(f"/proc/self/{name}", os.O_RDONLY)
    try:
        return os.read(handle, 1 << 14)
    finally:
        os.close(handle)


_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
