"""How many processors this process may use: cores that it is allowed, and what a quota leaves of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path


def default_threads() -> int:
    """One a core, but no more than the quota of the process's control groups has processors; 1 at least."""
    return max(1, min(physical_cores(), int(quota())))


def physical_cores() -> int:
    """Cores that this process may run on, counting a core with two hardware threads once where Linux tells."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    seen = set()
    for cpu in allowed:
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                seen.add(file.read().strip())
        except OSError:
            return max(1, len(allowed))
    return max(1, len(seen))


def quota(process: Path = Path("/proc/self")) -> float:
    """Processors' worth of time that the control groups of a process allow it (docker --cpus, a Kubernetes limit).

    The least of a group and those that it lies in, of both versions of control groups; a large number without one.
    """
    try:
        mounts, groups = (
            (process / name).read_text("utf-8", "surrogateescape") for name in ("mountinfo", "cgroup")
        )
    except OSError:
        return float(_NONE)
    least = float(_NONE)
    for line in groups.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path.startswith("/") and (not controllers or "cpu" in controllers.split(",")):
            for folder in _folders(mounts, path, old=bool(controllers)):
                least = min(least, _allowed(folder))
    return least


_NONE = 2**20


def _folders(mounts: str, path: str, old: bool) -> Iterator[Path]:
    """Where a group and those around it are shown, the innermost first; old: version 1.

    A container may see its group as the root of the mount, under the name that it has outside.
    """
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3 or kind[0] != ("cgroup" if old else "cgroup2"):
            continue
        if old and "cpu" not in kind[2].split(","):
            continue
        root, place = (_ESCAPED.sub(lambda m: chr(int(m[1], 8)), field) for field in fields[3:5])
        inside = (
            path.removeprefix(root.rstrip("/")) if (path + "/").startswith(root.rstrip("/") + "/") else ""
        )
        parts = [part for part in inside.split("/") if part]
        if ".." in parts:
            parts = []
        for length in range(len(parts), -1, -1):
            yield Path(place, *parts[:length])


_ESCAPED = re.compile(r"\\([0-7]{3})")


def _allowed(group: Path) -> float:
    """A quota over its period, both in microseconds; a large number where the group has none."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            numbers = " ".join((group / name).read_text() for name in names).split()
            spent, period = (int(number) for number in numbers)
        except (OSError, ValueError):  # "max", or no such file
            continue
        if spent > 0 and period > 0:
            return spent / period
    return float(_NONE)
