"""What the controller did and why, in a few lines whatever the length of the answer."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

_MOST = 32


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of an answer with one drafter. first, last: tokens of the answer. cost: a round in plain passes.

    trial: whether it was only tried. gain: predicted speed over plain decoding at its end. verdict: what came next.
    """

    drafter: str
    first: int
    last: int
    rounds: int
    nodes: float
    depth: float
    tokens: float
    cost: float
    trial: bool
    gain: float
    verdict: str

    def line(self) -> str:
        """One line."""
        where = f"{self.first}-{max(self.last, self.first)}"
        then = f" -> {self.verdict}" if self.verdict else ""
        if self.drafter == "none":
            return f"{where} plain decoding{then}"
        how = "tried " if self.trial else ""
        return (
            f"{where} {how}{self.drafter}, depth {self.depth:.1f}: {self.tokens:.2f} tokens at {self.cost:.2f} passes, "
            f"gain {self.gain:.2f}{then}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For `run --json`."""
        return {
            "drafter": self.drafter,
            "tokens": [self.first, self.last],
            "rounds": self.rounds,
            "nodes": round(self.nodes, 2),
            "depth": round(self.depth, 2),
            "tokens_per_round": round(self.tokens, 3),
            "passes_per_round": round(self.cost, 3),
            "trial": self.trial,
            "gain": round(self.gain, 3),
            "then": self.verdict,
        }


class Trace:
    """The last phases of one answer, and the tokens that each drafter was in charge of."""

    def __init__(self) -> None:
        self._phases: deque[Phase] = deque(maxlen=_MOST)
        self._forgotten = 0
        self.tokens: dict[str, int] = {}
        self._made = self._passes = 0.0

    def add(self, phase: Phase) -> None:
        """One more; the oldest is forgotten."""
        self._forgotten += len(self._phases) == _MOST
        self._phases.append(phase)
        self._made += phase.rounds * phase.tokens
        self._passes += phase.rounds * phase.cost
        self.tokens[phase.drafter] = self.tokens.get(phase.drafter, 0) + phase.last - phase.first + 1

    @property
    def times_plain(self) -> float | None:
        """Tokens over what all rounds cost in plain passes; None before the first phase has ended."""
        return self._made / self._passes if self._passes else None

    def lines(self) -> list[str]:
        """For people."""
        earlier = f" ({self._forgotten} earlier changes left out)" if self._forgotten else ""
        return [f"chosen by tokens of the answer{earlier}:", *(f"  {phase.line()}" for phase in self._phases)]

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "tokens_by_drafter": dict(self.tokens),
            "forgotten": self._forgotten,
            "phases": [phase.as_dict() for phase in self._phases],
        }
