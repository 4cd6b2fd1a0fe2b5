"""What passes of a model cost here: measured at first use, kept in the user's cache folder."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

from paceline.runtime.bundle.measurements import keep, read_all

_FILE = "costs.json"
_KEPT = 200
_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
NEAR, FAR = 16, 512
"""Rows of the cache that passes are timed over."""
_SWEEPS = 4
_AGAIN, _STEADY = 2, 4
"""Passes in a row of a width, and of one row: the first one after another width is slower, for one row by up to a
third, and plain decoding runs that width alone."""


class Probed(Protocol):
    """A model that can run a pass which leaves no trace."""

    @property
    def context(self) -> int:
        """Rows of its cache at most."""

    def probe(self, rows: int, past: int) -> None:
        """Run `rows` new rows after `past` rows of the cache, whatever these hold."""


@dataclass(frozen=True, slots=True)
class Points:
    """Seconds of a pass by rows after `near` cache rows, and what one more cache row adds to it."""

    near: int
    seconds: tuple[tuple[int, float], ...]
    slopes: tuple[tuple[int, float], ...]


def line(points: Sequence[tuple[int, float]], width: int) -> float:
    """Straight between points, and on beyond the last two."""
    at = bisect_left(points, (width, 0.0))
    if at < len(points) and points[at][0] == width:
        return points[at][1]
    if len(points) == 1:
        return points[0][1]
    at = min(max(at, 1), len(points) - 1)
    (w0, s0), (w1, s1) = points[at - 1], points[at]
    return s0 + (s1 - s0) * (width - w0) / (w1 - w0)


def measure(
    model: Probed, widest: int, budget: float, clock: Callable[[], float] = time.perf_counter
) -> Points:
    """Time passes of the model itself for about `budget` seconds: the least of some tries of each width.

    The cache keeps its content. Nothing must wait between `score` and `commit`.
    """
    widths = _widths(model, widest)
    widest = widths[-1]
    near = min(NEAR, model.context - widest)
    far = min(FAR, model.context - widest)
    begun, found = clock(), dict[tuple[int, int], float]()
    ends = sorted({1, widest})
    # The widths of an unfinished sweep are spread out; the long context is worth one sweep of its two ends.
    first = sorted(widths, key=lambda w: (w not in (1, widest, 4, 8), w))
    sweep = [(w, near) for w in first]
    jobs = sweep + (sweep + [(w, far) for w in ends]) * (_SWEEPS - 1)
    for number, (width, past) in enumerate(jobs):
        for _ in range(_STEADY if width == 1 else _AGAIN):
            at = clock()
            if number and at - begun + found.get((width, past), 0.0) > budget:
                break
            model.probe(width, past)
            took = max(clock() - at, 1e-7)
            found[width, past] = min(took, found.get((width, past), took))
    seconds = tuple((w, found[w, near]) for w in widths if (w, near) in found)
    longer = [w for w in ends if far > near and (w, far) in found]
    rises = tuple((w, (found[w, far] - found[w, near]) / (far - near)) for w in longer)
    return Points(near, seconds, rises or ((1, 0.0),))


def warm(model: Probed, widest: int) -> None:
    """Run every width that `measure` times once: the first run of a size may open a graph, or compile one."""
    for width in _widths(model, widest):
        model.probe(width, min(NEAR, model.context - width))


def _widths(model: Probed, widest: int) -> list[int]:
    widest = max(min(widest, model.context), 1)
    return sorted({w for w in _WIDTHS if w < widest} | {widest})


def known_points(key: str, widest: int, measured: Callable[[], Points]) -> Points:
    """From the cache folder, else measured now and kept there; a file that makes no sense is measured anew."""
    name = f"{key} {widest}"
    found = _parse(read_all(_FILE).get(name))
    if found is None:
        found = measured()
        keep(_FILE, name, [found.near, found.seconds, found.slopes], _KEPT)
    return found


def remembered(key: str) -> Points | None:
    """The widest that were measured, None where nothing was."""
    known = read_all(_FILE)
    widths = [
        (int(w), name) for name in known if name.startswith(f"{key} ") and (w := name.split()[-1]).isdecimal()
    ]
    return _parse(known[max(widths)[1]]) if widths else None


def rising(points: Points, width: int) -> float:
    """Seconds of a pass over so many rows of those measured: never less than over fewer."""
    return max(line(points.seconds, w) for w in range(1, width + 1))


def _parse(value: object) -> Points | None:
    if not isinstance(value, list) or len(value) != 3:
        return None
    try:
        points = Points(_whole(value[0]), _pairs(value[1], 1e-8), _pairs(value[2], -1.0))
    except (TypeError, ValueError, OverflowError):
        return None
    return points if points.seconds[0][0] == 1 else None


def _pairs(value: list[list[float]], least: float) -> tuple[tuple[int, float], ...]:
    pairs = tuple((_whole(width), float(seconds)) for width, seconds in value)
    widths = [width for width, _ in pairs]
    if (
        not pairs
        or widths != sorted(set(widths))
        or not all(isfinite(s) and least <= s < 1e4 for _, s in pairs)
    ):
        raise ValueError
    return pairs


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError
    return value
