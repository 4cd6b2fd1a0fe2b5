"""Counts and clocks of a generation. The definitions stand in docs/statistics.md."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from paceline.memory.budget import peak_memory
from paceline.runtime.beside import Tally
from paceline.runtime.control.trace import Trace


@dataclass(slots=True)
class Statistics:
    """One generation so far. Seconds are wall time; `decode` seconds exclude load and prefill."""

    drafter: str = "none"
    seed: int | None = None
    devices: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    """Parts whose device failed in this session, and how; a target goes on on the CPU."""
    placed: dict[str, str] = field(default_factory=dict)
    """Where `--device auto` put each part, and why."""
    mirror: str | None = None
    """What `--mirror auto` chose, and why; None without it."""
    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Prompt tokens whose cache rows were still there from the turn before."""
    slides: int = 0
    """How often the context was full and went on without its oldest part."""
    generated_tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    tested: int = 0
    accepted_by_depth: list[int] = field(default_factory=list)
    tested_by_depth: list[int] = field(default_factory=list)
    accepted_by_source: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("load", "prefill", "draft", "verify", "judge", "wait", "total"), 0.0
        )
    )
    first_token_seconds: float | None = None
    """From the start of the answer to its first token."""
    planned_bytes: int | None = None
    cache: str = "fp32"
    """In what form the caches were kept."""
    beside: Tally | None = None
    """What was drafted beside the target's passes; None where nothing may be."""
    control: Trace | None = None
    """What the controller chose and why, once the answer has ended."""

    @property
    def tokens_per_round(self) -> float:
        """Tokens a target pass yields, its own one included."""
        return (self.accepted + self.rounds) / self.rounds if self.rounds else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted levels over judged levels."""
        return self.accepted / self.tested if self.tested else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Generated tokens over the time after the prompt."""
        spent = self.seconds["total"] - self.seconds["prefill"]
        return self.generated_tokens / spent if spent > 0 else 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prompt tokens that were read over the time that took; 0 where all were in the cache."""
        read, spent = self.prompt_tokens - self.reused_tokens - 1, self.seconds["prefill"]
        return max(read, 0) / spent if spent > 0 else 0.0

    @property
    def times_plain(self) -> float | None:
        """Speed over plain decoding's, from what passes cost here; None where nobody kept account of that."""
        return None if self.control is None else self.control.times_plain

    def as_dict(self) -> dict[str, Any]:
        """The `stats` object of `run --json`."""
        return {
            "rounds": self.rounds,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "tested": self.tested,
            "generated_tokens": self.generated_tokens,
            "reused_tokens": self.reused_tokens,
            "slides": self.slides,
            "tokens_per_round": round(self.tokens_per_round, 4),
            "acceptance_rate": round(self.acceptance_rate, 4),
            "accepted_by_depth": list(self.accepted_by_depth),
            "tested_by_depth": list(self.tested_by_depth),
            "accepted_by_source": dict(self.accepted_by_source),
            "seconds": {k: round(v, 6) for k, v in self.seconds.items()},
            "decode_tokens_per_second": round(self.decode_tokens_per_second, 3),
            "prompt_tokens_per_second": round(self.prompt_tokens_per_second, 3),
            "first_token_seconds": _rounded(self.first_token_seconds, 6),
            "times_plain": _rounded(self.times_plain, 4),
            "peak_rss_bytes": peak_memory(),
            "planned_bytes": self.planned_bytes,
            "cache": self.cache,
            "devices": dict(self.devices),
            "lost": dict(self.lost),
            "placed": dict(self.placed),
            "mirror": self.mirror,
            "beside": None if self.beside is None else asdict(self.beside),
            "control": None if self.control is None else self.control.as_dict(),
        }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
