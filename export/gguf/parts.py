"""How the files of a split GGUF model are named; needs no library."""

from __future__ import annotations

import re

_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")


def is_first(name: str) -> bool:
    """Whether a file is a model of its own, or the first part of one."""
    part = _PART.fullmatch(name)
    return part is None or int(part[2]) == 1


def part_names(name: str) -> list[str]:
    """All parts of the file that has this name, in order."""
    part = _PART.fullmatch(name)
    if part is None:
        return [name]
    return [f"{part[1]}-{number:05}-of-{part[3]}.gguf" for number in range(1, int(part[3]) + 1)]
