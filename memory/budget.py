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


def budget_of(memory: str | int, scope: Scope) -> Budget:
    """Understand `900MB`; growth counts from this call on. Raises ValueError for what is no size or no scope."""
    if scope not in ("process", "growth"):
        raise ArgumentError(f"memory_scope is growth or process, not {scope!r:.40}")
    if isinstance(memory, bool) or not isinstance(memory, str | int):
        raise ArgumentError(f"memory is a size such as '900MB' or a number of bytes, not {memory!r:.40}")
    size = parse_size(memory) if isinstance(memory, str) else memory
    if size < 1:
        raise ArgumentError(f"a budget of {size} bytes holds nothing: write 900MB, 1.5GB or 800MiB")
    return Budget(size, resident() if scope == "growth" else 0)


def resident() -> int:
    """Bytes of this process in memory now; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def peak_memory() -> int | None:
    """Peak resident bytes of this process (VmHWM), None where the system does not tell."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
