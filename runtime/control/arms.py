"""What is known of each way to go on: its tokens and costs a round, fading, and what it did last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from paceline.runtime.control.trace import Phase

_DECAY = 0.96
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


@dataclass(slots=True)
class Arm:
    """A drafter that may be put in charge.

    depth: the most levels. part: the draft model that it runs. step: seconds of a draft pass, flat: seconds that
    drafting takes besides, both first guesses that rounds correct. hope: acceptance that it could have at best,
    before it was tried. catch_up: seconds for each token it has not seen. members: arms that it fuses.
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
    wait: int = 0
    patience: int = PATIENCE
    seen: int = 0
    weight: float = 0.0
    _tokens: float = 0.0
    _draft: float = 0.0
    _relative: float = 0.0
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

    @property
    def relative(self) -> float:
        """Mean cost of verifying a round, in plain passes."""
        return self._relative / self.weight

    def learn(self, tokens: int, depth: int, draft: float, relative: float) -> None:
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
        self._relative = _DECAY * self._relative + relative

    @property
    def learnt(self) -> Learnt:
        """What rounds taught, and when it may be tried again; not what it has read of its text."""
        sums = self._tokens, self._draft, self._relative, *self._sums
        return Learnt(self.step, self.flat, self.wait, self.patience, self.weight, sums)

    @learnt.setter
    def learnt(self, known: Learnt) -> None:
        self.step, self.flat, self.wait, self.patience, self.weight, sums = known
        self._tokens, self._draft, self._relative, *rest = sums
        self._sums = tuple(rest)

    def fade(self, weight: float) -> None:
        """What was learnt counts as so many rounds at most."""
        if self.weight > weight:
            share = weight / self.weight
            self.weight = weight
            self._tokens, self._draft, self._relative = (
                share * self._tokens,
                share * self._draft,
                share * self._relative,
            )


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
