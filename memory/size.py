"""Sizes of memory as people write them: `900MB`, `1.5 GiB`, `300000000`."""

from __future__ import annotations

import re

from paceline.memory.errors import ArgumentError

_UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "m": 10**6,
    "mb": 10**6,
    "g": 10**9,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_WRITTEN = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{0,3})\s*", re.ASCII)
_MOST = 2**50
_FEWEST = 10**5
"""Bytes: a number below it was meant in another unit."""


def parse_size(text: str) -> int:
    """Bytes. Decimal units (MB) unless written KiB, MiB or GiB. Raises ValueError for anything else."""
    match = _WRITTEN.fullmatch(text)
    unit = match and _UNITS.get(match[2].lower())
    if not match or unit is None:
        raise ArgumentError(f"{text[:40]!r} is not a size: write 900MB, 1.5GB or 800MiB")
    size = int(float(match[1]) * unit)
    if not match[2] and 0 < size < _FEWEST:
        raise ValueError(f"{text[:40]} without a unit is {size} bytes: did you mean {text.strip()[:40]}MB?")
    if not 0 < size <= _MOST:
        raise ArgumentError(
            f"{text[:40]!r} is no amount of memory a machine has: write 900MB, 1.5GB or 800MiB"
        )
    return size


def show_size(size: float) -> str:
    """Bytes for people, rounded up to a tenth of a megabyte: typed in again it is no less."""
    if size < 10**5:
        return f"{int(size)} B"
    tenths = -(-int(size) // 10**5)
    if tenths >= 10_000:
        return f"{-(-int(size) // 10**6)} MB"
    return f"{tenths / 10:.1f} MB"
