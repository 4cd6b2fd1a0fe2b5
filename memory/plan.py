"""Fits a bundle into a budget: of all ways to run it, the one predicted to be fastest that fits (SpecMemo, 2506.01986).

Context and cache precision are the user's and never changed here: a budget changes speed, not output.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from paceline.memory.cache import CacheFormat
from paceline.memory.errors import Error
from paceline.memory.model import (
    LEARNING,
    LIBRARIES,
    PROCESS,
    RESERVE,
    TABLES,
    TEXT,
    Choice,
    Overheads,
    Sizes,
    Term,
    reserve,
    terms,
)
from paceline.memory.room import Room
from paceline.memory.size import show_size

_NODES = (64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
_CHUNKS = (256, 128, 64, 32, 16)
_DRAFT_ROWS = (2048, 1024, 512, 256, 128)
_WORTH = 1.05
"""Speculation counts as useful from this predicted gain on."""
_READING = 0.12
"""Weight of the prompt's speed against decoding's, where chunks get small."""


_TEXT_BYTE = 200
"""Bytes that tokenizing a byte of text takes: 100 to 150 for prose, up to 330 for random letters."""
_ONCE = (PROCESS, LIBRARIES, "weights", "session", LEARNING, RESERVE)
"""Lines of a plan that sessions over the same weights share."""


class BudgetError(Error):
    """A budget that cannot work; the message is one line that names the cause and the cheapest remedy."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Costs in passes of the target over one row, and chances that a drafted token is accepted.

    verify: cost of a pass over n rows. draft: one step of the draft models. overhead: what drafting a round takes
    besides. model, free: acceptance of the draft models' tokens, and of those of drafters without one.
    """

    verify: Callable[[int], float]
    draft: float
    model: float
    free: float
    overhead: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user fixed, and the most room for drafting."""

    context: int
    cache: CacheFormat
    room: Room
    plain: bool = True
    """Whether less than all of this is an answer, down to plain decoding: not where a drafter was named."""
    smaller: tuple[CacheFormat, ...] = ()
    """Cache forms of the bundle that take less than `cache`, the most exact first."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A choice with all it takes. gain: predicted speed over plain decoding. least: bytes that run at all;
    useful: bytes from which speculation is predicted to gain over 5 %, None where it never does."""

    choice: Choice
    terms: tuple[Term, ...]
    gain: float
    budget: int | None
    least: int
    useful: int | None
    start: int = 0
    """Bytes of the process that the user's budget does not count."""
    drafters: tuple[str, ...] = ()
    """Names of those that there is memory for."""

    @property
    def total(self) -> int:
        """Bytes of the whole process at its highest."""
        return sum(term.bytes for term in self.terms)

    def shared_by(self, sessions: int) -> Plan:
        """The plan of several sessions over the same weights. Raises BudgetError where there is no room for them."""
        if sessions < 2:
            return self
        more = (sessions - 1) * sum(term.bytes for term in self.terms if term.what not in _ONCE)
        found = replace(self, terms=(*self.terms, Term("sessions", f"{sessions - 1} more", more)))
        if self.budget is not None and found.total > self.budget:
            raise BudgetError(
                f"{show_size(self.budget - self.start)} cannot hold {sessions} sessions, which take "
                f"{show_size(found.total - self.start)}: close one, or load with a larger memory"
            )
        return found

    @property
    def tables(self) -> int:
        """Bytes of the drafters without a model."""
        return sum(term.bytes for term in self.terms if term.what == TABLES)

    @property
    def longest_text(self) -> int:
        """Bytes of the longest text that there is memory to tokenize at once; half of what is kept back may go too."""
        free = sum(t.bytes for t in self.terms if t.what == TEXT) + self.part("reserve") // 2
        return free // _TEXT_BYTE

    def part(self, *parts: str) -> int:
        """Bytes of these parts."""
        return sum(term.bytes for term in self.terms if term.part in parts)


class Planner:
    """Knows one bundle on one machine."""

    def __init__(
        self,
        target: Sizes,
        drafts: Sequence[Sizes],
        overheads: Callable[[int, CacheFormat], Overheads],
        speeds: Speeds,
    ) -> None:
        """overheads: by context and form of the cache."""
        # A plan asks for the same few widths thousands of times, and for one context and cache.
        self._target, self._drafts, self._overheads = target, drafts, cache(overheads)
        self._speeds = replace(speeds, verify=cache(speeds.verify))

    def plan(self, wish: Wish, budget: int | None, start: int = 0) -> Plan:
        """The fastest choice that fits. Raises BudgetError, naming the cheapest remedy, where none does.

        budget: bytes of the whole process; `start` of them were there before and are not spoken of.
        """
        weighed = [(c, self.total(c), self.score(c)) for c in self._choices(wish)]
        least = min(size for _, size, _ in weighed)
        plain = self.score(_plain(wish))
        useful = min((size for _, size, score in weighed if score > _WORTH * plain), default=None)
        fitting = [w for w in weighed if budget is None or w[1] <= budget]
        if not fitting:
            raise BudgetError(self._refusal(wish, least, budget or 0, start))
        choice, _, _ = max(fitting, key=lambda w: (round(w[2], 4), -w[1]))
        return Plan(
            choice, tuple(self.terms(choice)), self._gain(choice, plain), budget, least, useful, start
        )

    def least(self, wish: Wish) -> int:
        """Bytes of the smallest way to run: nothing shrinks where more is drafted or read at a time."""
        return min(self.total(c) for c in self._choices(wish) if c.chunk == _CHUNKS[-1] and c.room.nodes < 2)

    def unbounded(self, wish: Wish) -> int:
        """Bytes of all that is wished, where no budget is given."""
        ways = list(_ways(wish))
        if not ways:
            return self.total(_plain(wish))
        room = replace(ways[0], depth=min(wish.room.depth, wish.room.nodes))
        return self.total(replace(_plain(wish), room=room))

    def terms(self, choice: Choice) -> Iterator[Term]:
        """All lines of a choice, what is kept back last."""
        overheads = self._overheads(choice.context, choice.cache)
        found = tuple(terms(choice, self._target, self._drafts, overheads))
        yield from found
        yield Term("reserve", RESERVE, reserve(sum(t.bytes for t in found)))

    def total(self, choice: Choice) -> int:
        """Bytes of a choice."""
        return sum(term.bytes for term in self.terms(choice))

    def score(self, choice: Choice) -> float:
        """A number that only ranks choices: what speed there is the controller finds out, from rounds as they go.

        About the tokens a target pass, less what small prompt chunks cost.
        """
        return self._decoding(choice) - _READING * math.sqrt(_CHUNKS[0] / choice.chunk) / 16

    def _gain(self, choice: Choice, plain: float) -> float:
        return self._decoding(choice) / self._decoding(replace(choice, room=_NONE))

    def _decoding(self, choice: Choice) -> float:
        one = self._speeds.verify(1)
        rates = [1.0]
        if choice.room.models:
            window = 1.0 if choice.draft_rows >= choice.context else 1 - 12 / choice.draft_rows
            rates += self._rates(choice, self._speeds.model * window, self._speeds.draft, one)
        if choice.room.tables:
            rates += self._rates(choice, self._speeds.free, 0.0, one)
        # The controller picks the best at every moment: a second way to draft and room for trees are worth a little.
        room = choice.room
        return max(rates) + 0.01 * (room.models and room.tables) + 0.002 * math.log2(room.nodes + 1)

    def _rates(self, choice: Choice, chance: float, step: float, one: float) -> list[float]:
        return [
            (1 - chance ** (d + 1))
            / (1 - chance)
            / (self._speeds.verify(1 + d) / one + d * step + self._speeds.overhead)
            for d in range(1, min(choice.room.depth, choice.room.nodes) + 1)
        ]

    def _choices(self, wish: Wish) -> Iterator[Choice]:
        for chunk in _CHUNKS:
            plain, most = replace(_plain(wish), chunk=chunk), wish.room
            if wish.plain or not (most.models or most.tables):
                yield plain
            shorter = [n for n in _DRAFT_ROWS if n < wish.context]
            for room in _ways(wish):
                for nodes in sorted({most.nodes, *(n for n in _NODES if n < most.nodes)}):
                    for rows in (None, *shorter) if room.models else (None,):
                        depth = min(most.depth, nodes)
                        yield replace(plain, room=replace(room, nodes=nodes, depth=depth, draft_rows=rows))

    def _refusal(self, wish: Wish, least: int, budget: int, start: int) -> str:
        """One line: what is asked needs so much; the cheapest change that fits."""
        line = (
            f"{show_size(budget - start)} cannot hold this: a context of {wish.context} with an {wish.cache} cache "
            f"needs {show_size(least - start)} at least"
        )
        shorter = self._longest(wish, budget)
        if not wish.plain and self._fits(replace(wish, plain=True), budget):
            return f"{line}; with drafter auto or none it would fit" + f", or context {shorter}" * bool(
                shorter
            )
        smaller = [replace(wish, cache=form) for form in wish.smaller]
        ways = [f"an {other.cache} cache" for other in smaller if self._fits(other, budget)][:1]
        if shorter:
            ways.append(f"context {shorter} instead of {wish.context}")
        elif not ways and smaller and (shorter := self._longest(smaller[-1], budget)):
            ways = [f"an {smaller[-1].cache} cache with context {shorter} instead of {wish.context}"]
        if ways:
            return f"{line}; {' or '.join(ways)} would fit"
        small = replace(wish, context=min(wish.context, _FEWEST), plain=True)
        floor = self.least(small)
        enough, less = _enough(least - start), _enough(floor - start)
        return f"{line}: give it {enough}" + (f", or {less} with context {_FEWEST}" if less != enough else "")

    def _longest(self, wish: Wish, budget: int) -> int | None:
        """The longest shorter context that fits, None where none worth naming does."""
        contexts = range(_FEWEST, wish.context)
        fitting = bisect_left(
            contexts, True, key=lambda context: not self._fits(replace(wish, context=context), budget)
        )
        return contexts[fitting - 1] if fitting else None

    def _fits(self, wish: Wish, budget: int) -> bool:
        """Whether it fits with some room: another process may be a little larger."""
        return self.least(wish) + SLACK <= budget


_FEWEST = 128
SLACK = 500_000
"""Bytes by which processes of the same bundle differ before they load it."""


def _enough(size: int) -> str:
    """A budget that will do, in whole megabytes."""
    return f"{-(-(size + SLACK) // 10**6)}MB"


def _ways(wish: Wish) -> Iterator[Room]:
    """With a draft model, with drafters that need none: all that is wished, and where that is allowed a part of it."""
    most = wish.room
    for models, tables in ((True, True), (True, False), (False, True)):
        wished = (models, tables) == (most.models, most.tables)
        if wished or (wish.plain and models <= most.models and tables <= most.tables):
            yield replace(most, models=models, tables=tables)


_NONE = Room(nodes=0, depth=0, models=False, tables=False)


def _plain(wish: Wish) -> Choice:
    return Choice(context=wish.context, cache=wish.cache, chunk=_CHUNKS[0], room=_NONE)
