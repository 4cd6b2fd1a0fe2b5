"""One generation: an iterator of events with the text, the statistics and the end that belong to it."""

from __future__ import annotations

import sys
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from threading import RLock
from time import perf_counter as clock
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.random import default_rng  # by name: numpy would load it, megabytes, at the first answer only

from paceline.memory.errors import ArgumentError
from paceline.runtime.adaptation.lessons import Lessons
from paceline.runtime.assemble import Drafting
from paceline.runtime.beside import Beside, Tally
from paceline.runtime.budget.pressure import OwnMemory, Watch
from paceline.runtime.contracts import Outcome, Round
from paceline.runtime.events import Event, FinishReason
from paceline.runtime.experience import Journal
from paceline.runtime.loop import decode, read_prompt
from paceline.runtime.model.graph import RunError
from paceline.runtime.model.model import Model
from paceline.runtime.model.ort import DeviceError
from paceline.runtime.model.window import window
from paceline.runtime.ops.vocabulary import top_k
from paceline.runtime.request import Request
from paceline.runtime.rules.registry import make_rule
from paceline.runtime.stats import Statistics
from paceline.runtime.text.stream import Likely, TextStream
from paceline.runtime.timeline import TARGET, Timeline

P = ParamSpec("P")
T = TypeVar("T")


class Turn:
    """Whose turn a session's cache serves: an answer takes it when it begins, and has ended once it is taken again.

    lock: held while a round runs, and by whoever else touches the cache: a thread that should not be there waits, and
    finds or leaves a whole round.
    """

    __slots__ = ("holder", "lock")

    def __init__(self) -> None:
        self.holder: object = None
        self.lock = RLock()


@dataclass(frozen=True, slots=True)
class Engine:
    """What an answer is made with."""

    target: Model
    drafting: Drafting
    watch: Watch | None
    memory: OwnMemory
    turn: Turn
    chunk: int
    lessons: Lessons | None = None
    beside: Beside | None = None
    journal: Journal | None = None
    move: Callable[[Exception], None] | None = None
    """Lets a target whose device failed so go on on the CPU; raises where it cannot."""


class Answer:
    """Runs as far as it is asked: `for` and `async for` give events, the last of which has a `finish_reason`.

    Leaving the loop ends it. One thread at a time, but for `cancel`. Raises ValueError once another answer of the
    session was begun, or the session reset.
    """

    def __init__(
        self,
        engine: Engine,
        request: Request,
        prompt: Sequence[int],
        room: int,
        stream: TextStream,
        stats: Statistics,
        logprobs: int | None = None,
    ) -> None:
        self.stats = stats
        self.tokens: list[int] = []
        """Token ids so far."""
        self.finish_reason: FinishReason | None = None
        """None while it is not at its end."""
        self.timeline: Timeline | None = None
        """When what ran, once `record` was called."""
        self._engine, self._request, self._stream, self._logprobs = engine, request, stream, logprobs
        self._rounds = self._decode(array("q", prompt), room)
        self._ready: deque[Event] = deque()
        self._pieces: list[str] = []
        self._begun: float | None = None
        self._mark = object()
        self._broken: str | None = None
        """Why it cannot go on, for everyone who asks again."""
        self._over = self._cancelled = self._steered = False
        self._moves = 0
        """How often the target's device was lost."""

    def __repr__(self) -> str:
        return f"<Answer of {len(self.tokens)} tokens, {self.finish_reason or 'not at its end'}>"

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    def __iter__(self) -> Answer:
        return self

    def __next__(self) -> Event:
        if not self._ready and not self._advance():
            raise StopIteration
        return self._give()

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Event:
        if not self._ready and not await in_thread(self._advance, self.cancel):
            raise StopAsyncIteration
        return self._give()

    def record(self) -> Timeline:
        """Write down from now on when what runs. Before the answer begins."""
        self.timeline = Timeline()
        return self.timeline

    def read(self) -> Answer:
        """Run to the end; returns itself, for its `text`, `tokens`, `finish_reason` and `stats`."""
        for _ in self:
            pass
        return self

    def cancel(self) -> None:
        """End with a last event "cancelled", after the round or the chunk of the prompt that runs. From any thread."""
        self._cancelled = True

    def close(self) -> None:
        """End now; nothing more comes."""
        with self._engine.turn.lock:
            self._abandon()

    def _abandon(self) -> None:
        if not self._over:
            self.finish_reason = "cancelled"
            self._ready.clear()
            self._end()

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not finalizing() and not getattr(self, "_over", True):
            self._abandon()  # without the lock: collectors of two threads would wait for each other

    def _give(self) -> Event:
        event = self._ready.popleft()
        spent = clock() - (self._begun or 0.0)
        if event.token is not None:
            if not self.tokens:
                self.stats.first_token_seconds = spent
            self.tokens.append(event.token)
            self.stats.generated_tokens += 1
        self._pieces.append(event.text)
        self.finish_reason = event.finish_reason
        self.stats.seconds["total"] = spent
        return event

    def _advance(self) -> bool:
        """Go on, round by round, until there is an event to give; False at the end."""
        if self._broken is not None and not self._ready:
            raise ArgumentError(self._broken)
        while not self._ready and not self._over:
            with self._engine.turn.lock:
                self._round()
        return bool(self._ready)

    def _round(self) -> None:
        """The next round, or the end."""
        if self._engine.turn.holder is not self._mark:
            self._take_turn()
        whole = False
        try:
            done = None if self._cancelled else next(self._rounds, None)
            if done is None:
                self._ready.extend(self._stream.close("cancelled" if self._cancelled else "length"))
            else:
                self._count(done)
                likely = () if self._logprobs is None else likely_of(done.outcome, self._logprobs)
                self._ready.extend(self._stream.push(done.outcome, likely))
                if self._stream.finished:
                    self._ready.extend(self._stream.close())
            whole = True
        except Exception as error:
            self._broken = f"this answer ended in an error: {' '.join(str(error).split())}"
            raise
        finally:
            if not whole:
                # Something failed in the middle of a round: what the drafter holds may be half of it.
                self._engine.drafting.drafter.reset()
            if not whole or done is None or self._stream.finished:
                self._end()

    def _count(self, done: Round) -> None:
        """Add a round to the statistics."""
        stats, verdict, sources = self.stats, done.outcome.verdict, done.outcome.tree.sources
        accepted = len(verdict.path) - 1
        if self.timeline is not None:
            self.timeline.round(done)
        stats.seconds["draft"] += done.draft
        stats.seconds["verify"] += done.verify
        stats.seconds["judge"] += done.judge
        stats.seconds["wait"] += done.wait
        stats.rounds += 1
        stats.drafted += len(sources) - 1
        stats.accepted += accepted
        stats.tested += verdict.tried
        for counts, depth in ((stats.accepted_by_depth, accepted), (stats.tested_by_depth, verdict.tried)):
            counts.extend([0] * (depth - len(counts)))
            for level in range(depth):
                counts[level] += 1
        for node in verdict.path[1:]:
            source = sources[node]
            stats.accepted_by_source[source] = stats.accepted_by_source.get(source, 0) + 1

    def _take_turn(self) -> None:
        """Begin, or find that somebody else has begun since."""
        if self._begun is not None:
            self._end()
            self._broken = (
                "this answer was given up: another one was started or the session was reset (session.another() "
                "gives a session for each conversation that runs at the same time)"
            )
            raise ArgumentError(self._broken)
        if self._engine.lessons is not None:
            self._engine.lessons.enter()
        if self._engine.beside is not None:
            self.stats.beside = self._engine.beside.tally = Tally()
            self._engine.beside.timeline = self.timeline
        self._begun, self._engine.turn.holder = clock(), self._mark

    def _end(self) -> None:
        """Book what is over; a session that meanwhile does something else is left alone."""
        engine, self._over = self._engine, True
        self._rounds.close()
        if engine.beside is not None:
            engine.beside.rest()
        if self._begun is None:
            return
        self.stats.seconds["total"] = clock() - self._begun
        if engine.lessons is not None:
            engine.lessons.leave(self.stats.seconds["total"], self.stats.accepted, self.stats.tested)
        self.stats.drafter = engine.drafting.settled
        if engine.journal is not None and engine.journal.drafter == engine.drafting.name.text:
            engine.journal.learn(self.stats)
        if engine.turn.holder is self._mark:
            if self._steered:
                self.stats.control = engine.drafting.control.finish()
            engine.memory.used()

    def _decode(self, ids: array[int], room: int) -> Generator[Round]:
        """Read the prompt, then decode.

        A context that is full slides: what the window keeps is read again, and decoding goes on from there. So it is
        where the length of the text gives it other rotary frequencies.
        """
        target, stats, end, first = self._engine.target, self.stats, len(ids) + room, True
        while len(ids) < end:
            place = window(len(ids) + 1, target.context)
            kept = place.of(ids)
            length = len(kept)
            number = place.number + (target.prepare(length) << 32)
            request = replace(
                self._request,
                number=number,
                prompt_length=place.place(self._request.prompt_length),
                conversation=None if place.number else self._request.conversation,
            )
            stats.slides += place.number > 0
            try:
                yield from self._segment(request, kept, min(end - len(ids), target.room(length)), first)
            except (RunError, DeviceError) as error:
                self._move(error)
            if self._cancelled:
                return
            ids.extend(kept[length:])
            first = False

    def _move(self, error: RunError | DeviceError) -> None:
        """Go on after a target's device was lost. Raises the error where it was not that."""
        engine = self._engine
        if engine.move is None or (isinstance(error, RunError) and not error.away):
            raise error
        engine.move(error)
        engine.drafting.drafter.reset()
        self.stats.devices["target"] = engine.target.provider
        self._moves += 1

    def _segment(self, request: Request, ids: list[int], room: int, first: bool) -> Iterator[Round]:
        """Read what the cache does not hold yet and decode as far as the context goes."""
        engine, seconds = self._engine, self.stats.seconds
        target, watch = engine.target, engine.watch
        drafter, control = engine.drafting.drafter, engine.drafting.control
        rule = make_rule(request)
        rng = default_rng([request.seed, request.number, self._moves])
        reused = target.keep_common(ids[:-1])
        if engine.lessons is not None:
            engine.lessons.begin(request)
        drafter.begin(request)
        if first:
            self.stats.reused_tokens = reused
            control.begin(request, reused)
            self._steered = True
        else:
            control.moved(len(ids))
        for reading, learning in read_prompt(target, drafter, ids, engine.chunk):
            if self.timeline is not None:
                ended = clock() - learning
                self.timeline.add(TARGET, "prompt", ended - reading, ended)
            seconds["prefill"] += reading
            seconds["draft"] += learning
            if self._cancelled:
                return
        if watch is not None:
            watch.look(control, first=True)
        rounds = decode(target, drafter, rule, control, ids, room, rng, engine.beside)
        for done in rounds if engine.lessons is None else _shown(rounds, engine.lessons, ids):
            yield done
            if watch is not None:
                watch.look(control)


def _shown(rounds: Iterator[Round], lessons: Lessons, ids: list[int]) -> Iterator[Round]:
    """Rounds that draft models learn from. ids: the text, as it grows."""
    try:
        for done in rounds:
            lessons.see(done.outcome, len(ids))
            yield done
    finally:
        lessons.keep(ids)


def likely_of(outcome: Outcome, count: int) -> Sequence[Likely]:
    """What the target thought of each token of a round, and of the `count` likeliest ones in its place."""
    found: list[Likely] = []
    for node, token in zip(outcome.verdict.path, outcome.tokens, strict=True):
        row = outcome.scored.logits[node]
        top = float(row.max())
        total = top + float(np.log(np.exp(row.astype(np.float64) - top).sum()))
        best: tuple[tuple[int, float], ...] = ()
        if count:
            ids, values = top_k(row, count)
            best = tuple((int(i), float(v) - total) for i, v in zip(ids[0], values[0], strict=True))
        found.append((float(row[token]) - total, best))
    return found


async def in_thread(work: Callable[[], T], give_up: Callable[[], None] = lambda: None) -> T:
    """Run it beside the event loop; a task that is cancelled meanwhile gives it up, and leaves once it has ended."""
    import asyncio

    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        give_up()
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:
                continue
        if not running.cancelled():
            running.exception()
        raise


def events_of(start: Callable[P, Answer]) -> Callable[P, AsyncIterator[Event]]:
    """The same call for `async for`: it never holds up the event loop, and leaving the loop ends the answer."""

    @wraps(start)
    async def events(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Event]:
        answer = await in_thread(partial(start, *args, **kwargs))
        try:
            async for event in answer:
                yield event
        finally:
            answer.close()

    return events
