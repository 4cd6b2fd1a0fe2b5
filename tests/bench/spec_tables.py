"""What Spec-Bench prints: a table for each figure, a row for each contender, a column for each group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

PLAIN = "none"
"""Plain decoding, which all others are compared with."""


@dataclass(frozen=True, slots=True)
class Answer:
    """tokens: without the end. passes: tokens that were decided in `seconds`, an end among them. first: seconds from
    the question to the first token. accepted, tried: drafted tokens by depth.
    """

    tokens: tuple[int, ...]
    passes: int
    seconds: float
    rounds: int
    first: float
    accepted: tuple[int, ...] = ()
    tried: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """All answers of one contender to one conversation."""

    answers: tuple[Answer, ...]

    @property
    def tokens(self) -> tuple[tuple[int, ...], ...]:
        """Of each answer."""
        return tuple(answer.tokens for answer in self.answers)

    @property
    def rate(self) -> float | None:
        """Tokens a second; None where another engine ended at once and nothing was timed."""
        seconds, passes = sum(a.seconds for a in self.answers), sum(a.passes for a in self.answers)
        return passes / seconds if passes else None


class Named(Protocol):
    """Somebody whose answers are shown. source: what its weights came from, for the perplexity."""

    name: str
    source: str


def quarters(values: Sequence[float], digits: int) -> str:
    """Median and quarter points; a dash where nothing was measured."""
    if not values:
        return "-"
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.{digits}f} [{low:.{digits}f} {high:.{digits}f}]"


def markdown(head: Sequence[str], rows: Iterator[list[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


@dataclass(frozen=True, slots=True)
class Told:
    """Everything that was measured: rows by group and contender, seconds to the first token by contender and length."""

    contenders: Sequence[Named]
    groups: dict[str, list[dict[str, Row]]]
    perplexities: dict[str, str]
    reading: dict[str, dict[int, list[float]]]

    def every(self) -> list[dict[str, Row]]:
        """All conversations."""
        return [rows for found in self.groups.values() for rows in found]

    def print(self) -> None:
        """The tables."""
        head = ["", "perplexity", *(f"{group} ({len(rows)})" for group, rows in self.groups.items()), "all"]
        for title, cell in (
            ("Tokens a second", self._rate),
            ("Ratio to `none`", self._ratio),
            ("Tokens a round", self._per_round),
            ("Answers equal to `none`", self._same),
        ):
            print(f"{title}\n")
            print(markdown(head, self._rows(cell)))
        self._print_depths()
        if self.reading:
            lengths = list(next(iter(self.reading.values())))
            cells = [f"{n} tokens, {what}" for n in lengths for what in ("tok/s", "ms to the first token")]
            print("Reading a prompt\n")
            print(markdown(["", "perplexity", *cells], self._reading()))

    def _print_depths(self) -> None:
        """Of all groups: how often a drafted token was accepted, by its depth, where the one above it was."""
        found = {one.name: self._by_depth(one.name) for one in self.contenders}
        deepest = max(map(len, found.values()), default=0)
        if deepest:
            print("Accepted of tested, by depth\n")
            rows = ([name, *row, *["-"] * (deepest - len(row))] for name, row in found.items() if row)
            print(markdown(["", *map(str, range(1, deepest + 1))], rows))

    def _by_depth(self, name: str) -> list[str]:
        answers = [answer for row in self.every() for answer in row[name].answers]
        deepest = max((len(answer.tried) for answer in answers), default=0)
        shown = []
        for depth in range(deepest):
            accepted, tried = (
                sum(counts[depth] for counts in found if depth < len(counts))
                for found in ([a.accepted for a in answers], [a.tried for a in answers])
            )
            shown.append(f"{accepted / tried:.0%}" if tried else "-")
        return shown

    def _rows(self, cell: Any) -> Iterator[list[str]]:
        found = [*self.groups.values(), self.every()]
        for one in self.contenders:
            yield [one.name, self.perplexities[one.source], *(cell(one.name, rows) for rows in found)]

    def _rate(self, name: str, rows: list[dict[str, Row]]) -> str:
        return quarters([rate for row in rows if (rate := row[name].rate)], 1)

    def _ratio(self, name: str, rows: list[dict[str, Row]]) -> str:
        pairs = [(row[name].rate, row[PLAIN].rate) for row in rows]
        return quarters([rate / plain for rate, plain in pairs if rate and plain], 2)

    def _per_round(self, name: str, rows: list[dict[str, Row]]) -> str:
        every = [answer for row in rows for answer in row[name].answers]
        rounds = sum(answer.rounds for answer in every)
        return f"{sum(answer.passes for answer in every) / rounds:.2f}" if rounds else "-"

    def _same(self, name: str, rows: list[dict[str, Row]]) -> str:
        pairs = [both for row in rows for both in zip(row[name].tokens, row[PLAIN].tokens, strict=True)]
        return f"{sum(one == plain for one, plain in pairs)} of {len(pairs)}"

    def _reading(self) -> Iterator[list[str]]:
        for one in self.contenders:
            if one.name not in self.reading:
                continue
            row = [one.name, self.perplexities[one.source]]
            for length, seconds in self.reading[one.name].items():
                row += [quarters([length / s for s in seconds], 0), quarters([1e3 * s for s in seconds], 1)]
            yield row
