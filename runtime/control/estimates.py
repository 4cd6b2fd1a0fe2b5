"""What rounds teach: tokens and costs of each way to go on, seconds of a pass. Older rounds fade.

The model of time is that of SmartSpec (arXiv 2406.14066): seconds by rows and context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from paceline.runtime.control.costs import Points, line
from paceline.runtime.control.trace import Phase

_DECAY = 0.96
_DRIFT, _CORRECTION, _LEAK = 0.1, 0.03, 0.005
"""How far one round moves the drift of all widths and the correction of its own, and how much of that fades."""
_ABSENT = 32
"""A width that did not run for a while teaches as much as if it had been run all the while, up to so many rounds."""
PATIENCE = 24
"""Tokens from one trial to the next, at first; they double while an arm loses."""


class Learnt(NamedTuple):
    """What is known of an arm after some rounds."""

    step: float
    flat: float
    wait: int
    patience: int
    weight: float
    sums: tuple[float, ...]
    widths: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class Arm:
    """A drafter that may be put in charge.

    depth: the most levels. part: the draft model that it runs. step: seconds of a draft pass, flat: seconds that
    drafting takes besides, both first guesses that rounds correct. hope: acceptance that it could have at best,
    before it was tried. catch_up: seconds for each token it has not seen. members: arms that it fuses.
    fixed: price of a level where answers depend on drafts, and so not on the clock.
    wait: tokens until it may be tried again. seen: tokens of the text when it ran last.
    """

    name: str
    depth: int
    part: str | None = None
    step: float = 0.0
    flat: float = 2e-5
    hope: float = 0.85
    catch_up: float = 2e-6
    members: tuple[str, ...] = ()
    fixed: float = 0.3
    wait: int = 0
    patience: int = PATIENCE
    seen: int = 0
    weight: float = 0.0
    _tokens: float = 0.0
    _draft: float = 0.0
    _widths: dict[int, float] = field(default_factory=dict)
    _sums: tuple[float, ...] = ()
    models: bool = field(init=False)
    """Whether it runs a draft model."""
    plain: bool = field(init=False)
    """Whether it drafts nothing."""

    def __post_init__(self) -> None:
        self.models, self.plain = self.part is not None, self.depth == 0
        # The line through seconds by depth: first guesses count as two rounds of none and two of four levels.
        y, xy = self.flat + (self.flat + 4 * self.step), 4 * (self.flat + 4 * self.step)
        self._sums = (4.0, 8.0, 2 * y, 32.0, 2 * xy)

    @property
    def tokens(self) -> float:
        """Mean tokens a round."""
        return self._tokens / self.weight

    @property
    def draft(self) -> float:
        """Mean seconds a round of drafting and learning."""
        return self._draft / self.weight

    def verify(self, curve: CostCurve, past: int) -> float:
        """Mean seconds of verifying a round, at what passes of the widths that it had cost now."""
        rows = sum(share * curve.seconds(width, past) for width, share in self._widths.items())
        return rows / self.weight

    def learn(self, tokens: int, depth: int, draft: float, width: int) -> None:
        """One round. draft: its seconds, 0 where they mean nothing (catching up with the text)."""
        usual = self.flat + self.step * depth
        draft = min(draft, 3 * usual) if draft > 0 else usual
        n, x, y, xx, xy = self._sums
        n, x, y = _DECAY * n + 1, _DECAY * x + depth, _DECAY * y + draft
        xx, xy = _DECAY * xx + depth * depth, _DECAY * xy + depth * draft
        self._sums = n, x, y, xx, xy
        spread = n * xx - x * x
        if self.models and spread > 0.1 * n * n:
            slope = (n * xy - x * y) / spread
            self.step = min(max(slope, 0.2 * y / max(x, n)), y / max(x, n))
        self.flat = max((y - self.step * x) / n, 0.0)
        self.weight = _DECAY * self.weight + 1
        self._tokens = _DECAY * self._tokens + tokens
        self._draft = _DECAY * self._draft + draft
        for known in self._widths:
            self._widths[known] *= _DECAY
        self._widths[width] = self._widths.get(width, 0.0) + 1

    @property
    def learnt(self) -> Learnt:
        """What rounds taught, and when it may be tried again; not what it has read of its text."""
        sums = self._tokens, self._draft, *self._sums
        widths = tuple(self._widths.items())
        return Learnt(self.step, self.flat, self.wait, self.patience, self.weight, sums, widths)

    @learnt.setter
    def learnt(self, known: Learnt) -> None:
        self.step, self.flat, self.wait, self.patience, self.weight, sums, widths = known
        self._tokens, self._draft, *rest = sums
        self._sums, self._widths = tuple(rest), dict(widths)

    def fade(self, weight: float) -> None:
        """What was learnt counts as so many rounds at most."""
        if self.weight > weight:
            share = weight / self.weight
            self.weight = weight
            self._tokens, self._draft = share * self._tokens, share * self._draft
            self._widths = {width: share * rounds for width, rounds in self._widths.items()}


@dataclass(slots=True)
class Stretch:
    """Sums over consecutive rounds of one arm. first: tokens of the answer before it; passes: cost in plain ones."""

    first: int = 0
    rounds: int = 0
    tokens: int = 0
    nodes: int = 0
    levels: int = 0
    seconds: float = 0.0
    passes: float = 0.0

    def add(
        self, rounds: int, tokens: int, seconds: float, passes: float, nodes: int = 0, levels: int = 0
    ) -> None:
        """Some more rounds."""
        self.rounds += rounds
        self.tokens += tokens
        self.seconds += seconds
        self.passes += passes
        self.nodes += nodes
        self.levels += levels

    def phase(self, name: str, trial: bool, gain: float, verdict: str) -> Phase:
        """For the trace; `rounds` is not 0."""
        n, last = self.rounds, self.first + self.tokens - 1
        means = (self.nodes / n, self.levels / n, self.tokens / n, self.passes / n)
        return Phase(name, self.first, last, n, *means, trial, gain, verdict)


class Drift(NamedTuple):
    """What passes cost over what they cost when they were measured: all of them, and besides those of each width."""

    all_widths: float
    correction: tuple[float, ...]
    seen: tuple[int, ...]


class CostCurve:
    """Seconds of a pass over some rows after some context, as they are at the moment on this machine.

    Between measured widths it is straight. `drift` is what all passes cost now over what they cost when they were
    measured: heat, a busy core. Every width has a slow correction of its own besides. Width 0 is plain decoding: one
    row among its like, which is quicker than one row between wider passes.
    """

    def __init__(self, points: Points, widest: int) -> None:
        self._near = points.near
        widths = [1, *range(1, widest + 1)]
        self._base = [line(points.seconds, width) for width in widths]
        self._slope = [max(line(points.slopes, width), 0.0) for width in widths]
        self._correction = [1.0] * len(widths)
        self._seen = [0] * len(widths)
        self._rounds, self._last = 0, [0] * len(widths)
        self.drift = 1.0

    @property
    def now(self) -> Drift:
        """How the passes differ from what was measured."""
        return Drift(self.drift, tuple(self._correction), tuple(self._seen))

    @now.setter
    def now(self, found: Drift) -> None:
        if len(found.correction) == len(self._correction):
            self._correction, self._seen = list(found.correction), list(found.seen)
        self.drift = found.all_widths

    @property
    def widest(self) -> int:
        """Most rows of a pass."""
        return len(self._base) - 1

    def seconds(self, width: int, past: int) -> float:
        """Seconds of a pass over `width` rows after `past` rows of context."""
        at = min(width, len(self._base) - 1)
        base = self._base[at] + self._slope[at] * (past - self._near)
        return max(base, 0.2 * self._base[at]) * self.drift * self._correction[at]

    def learn(self, width: int, past: int, seconds: float, rounds: int = 1) -> None:
        """A pass took so long, or the mean of some rounds did."""
        if not 0 < seconds < 1e4:
            return
        at = min(width, len(self._base) - 1)
        ratio = min(max(seconds / self.seconds(width, past), 0.3), 3.0)
        absent = min(self._rounds - self._last[at], _ABSENT)
        self._rounds += rounds
        self._seen[at] += rounds
        self._last[at] = self._rounds
        own = max(1 - (1 - _CORRECTION) ** (rounds + absent), 0.3 / (self._seen[at] + 2))
        own_now = self._correction[at] ** (1 - _LEAK) ** rounds * ratio**own
        self._correction[at] = min(max(own_now, 0.5), 2.0)
        # What the width has alone, by what others of late were like, is not the machine's.
        share = (1 - (1 - _DRIFT) ** rounds) * (1 - _CORRECTION) ** absent
        self.drift = min(max(self.drift * ratio**share, 0.02), 50.0)

    def slopes(self, past: int, nodes: int) -> list[float]:
        """Seconds that the first, second, ... node adds: those of the curve's convex hull, so they never fall."""
        costs = [self.seconds(width, past) for width in range(1, min(nodes + 1, self.widest) + 1)]
        hull = [0]
        for at in range(1, len(costs)):
            while len(hull) > 1 and _rise(costs, hull[-2], hull[-1]) >= _rise(costs, hull[-1], at):
                hull.pop()
            hull.append(at)
        found: list[float] = []
        for a, b in pairwise(hull):
            found += [max(_rise(costs, a, b), 0.0)] * (b - a)
        return found


def _rise(costs: Sequence[float], a: int, b: int) -> float:
    return (costs[b] - costs[a]) / (b - a)
