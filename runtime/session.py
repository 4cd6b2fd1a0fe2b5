"""A loaded bundle that generates: what the Python API and every command decode with."""

from __future__ import annotations

import operator
import secrets
import sys
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from paceline.memory.ladder import Ladder
from paceline.memory.plan import Plan
from paceline.runtime.assemble import Drafting, Settings, Workshop
from paceline.runtime.budget.planning import check_room, ladder_of
from paceline.runtime.budget.pressure import Bounded, Watched
from paceline.runtime.bundle.generation import sampling_of
from paceline.runtime.contracts import DraftLimit, Outcome, Request
from paceline.runtime.drafters.kinds import Name, parse
from paceline.runtime.events import Event
from paceline.runtime.loaded import Shared
from paceline.runtime.loop import decode, read_prompt
from paceline.runtime.manifest import BundleError
from paceline.runtime.model.saved import load_cache, save_cache
from paceline.runtime.model.window import window
from paceline.runtime.rules.registry import make_rule
from paceline.runtime.rules.sampling import Sampling, validate
from paceline.runtime.stats import Statistics, TimedDrafter, TimedRule, TimedTarget
from paceline.runtime.text.chat import ChatText
from paceline.runtime.text.stream import TextStream


class Session:
    """One sequence of one bundle: its cache lives on between calls and is reused by common prefix.

    One thread at a time; `another` gives a session for another thread, or for another conversation. Close it, or
    use it as a context manager.
    """

    def __init__(
        self, shared: Shared, settings: Settings, drafter: Name, begun: float, plan: Plan | None = None
    ) -> None:
        shared.memory.begin()
        self.bundle, self.text = shared.bundle, shared.text
        self._chat = None if shared.template is None else ChatText(shared.text, shared.template)
        self.plan, self._settings, self._shared = plan, settings, shared
        self._workshop = Workshop(shared, settings)
        self._target = self._workshop.target()
        self._turn = 0
        self._closed = False
        self._memory = shared.memory
        self._ladder: Ladder | None = None
        self._draftings: dict[str, Drafting] = {}
        self._memory.used()
        self._draft_with(drafter)
        self.stats = Statistics(drafter=self.drafter_name)
        shared.sessions.add(self)
        self._memory.used()
        self._load_seconds = time.perf_counter() - begun

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def another(self, drafter: str | None = None) -> Session:
        """A new, empty session over the same weights and tokenizer, with caches, drafters and statistics of its own.

        drafter: None means the one in use here. Raises BudgetError where the memory plan has no room for it.
        """
        self._check_open()
        begun, shared = time.perf_counter(), self._shared
        name = self._name(drafter or self.drafter_name)
        with shared.joining:
            planned = self._planned_for(len(shared.sessions) + 1)
            made = Session(shared, self._settings, name, begun, self.plan)
        shared.planned = max(shared.planned, planned)
        return made

    def _planned_for(self, sessions: int) -> int:
        """Bytes of the process with so many sessions. Raises BudgetError where the plan has no room for them."""
        if self.plan is not None:
            return self.plan.shared_by(sessions).total
        return self._shared.single + (sessions - 1) * sum(self.held_bytes().values())

    def _check_text(self, text: str, empty: bool = False) -> None:
        """Raise ValueError for a text that cannot be tokenized: an empty one, or one too long for the memory plan."""
        if not (text or empty):
            raise ValueError("the prompt is empty: give some text to continue")
        most = sys.maxsize if self.plan is None else self.plan.longest_text
        if 4 * len(text) > most and (size := len(text.encode(errors="replace"))) > most:
            raise ValueError(
                f"the memory plan has room to tokenize {most} bytes of text at once, and this one has {size}: "
                "shorten it or give more memory"
            )

    def _check_growth(self, characters: int) -> None:
        """Raise ValueError where a conversation that never ends would pass the budget in the end."""
        self._memory.begin()
        if self.plan is None or self.plan.budget is None:
            return
        if self._memory.used() + _RENDERED * characters > self.plan.budget:
            raise ValueError(
                f"a conversation of {characters} characters has outgrown the memory plan: begin a new one, "
                "or start again with more memory"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this session was closed: load another one")

    @property
    def has_template(self) -> bool:
        """Whether the bundle can chat."""
        return self._chat is not None

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._settings.context

    def drafter_names(self) -> list[str]:
        """Single drafters that this bundle can run."""
        return self._workshop.names()

    def held_bytes(self) -> dict[str, int]:
        """Bytes of caches, buffers and tables, by part of the plan."""
        limit = DraftLimit(self._settings.max_nodes, self._settings.max_nodes)
        drafts = self._workshop.draft_bytes() + self._workshop.table_bytes(limit)
        return {"target": self._target.cache.bytes + self._target.logit_bytes, "drafter": drafts}

    def set_drafter(self, name: str) -> None:
        """Draft with another drafter from the next call on. Raises ValueError that lists what there is."""
        self._check_open()
        self._draft_with(self._name(name))

    def _name(self, text: str) -> Name:
        return parse(text, self.bundle.manifest.drafters)

    def _draft_with(self, name: Name) -> None:
        if name.text not in self._draftings:
            self._memory.begin()
            if self.plan is not None:
                check_room(self.plan, self.bundle, self._settings, name)
                if self._workshop.make_room(name, self.plan.tables):
                    self._draftings.clear()
            made = self._workshop.drafting(name)
            offered = self.bundle.manifest.target.taps
            if missing := sorted(made.drafter.needs.difference(offered)):
                raise ValueError(
                    f"drafter {name.text!r} reads {', '.join(missing)} of the target and this bundle gives "
                    f"{', '.join(offered) or 'no taps'}: export it again with --taps {','.join(missing)}"
                )
            self._draftings[name.text] = made
            self._memory.used()
        self._drafting = self._draftings[name.text]
        self.drafter_name = name.text

    def reset(self) -> None:
        """Forget the sequence: caches and what drafters learnt from it. An answer that was under way ends."""
        self._turn += 1
        self._target.rewind(0)
        if self._chat is not None:
            self._chat.forget()
        for drafting in self._draftings.values():
            drafting.drafter.reset()

    def save(self, path: str | Path) -> int:
        """Write the cache to a file; returns its bytes. Raises ValueError, with every file as it was."""
        self._check_open()
        return save_cache(Path(path), self.bundle, self._target)

    def restore(self, path: str | Path) -> int:
        """Go on from a saved cache: a text that begins with its tokens is not read again. Returns how many these are.

        Raises ValueError, with the session as it was, for a file that is damaged or that this session cannot use.
        """
        self._check_open()
        restored = load_cache(Path(path), self.bundle, self._target)
        self._turn += 1
        for drafting in self._draftings.values():
            drafting.drafter.reset()
        return restored

    def close(self) -> None:
        """Write the suffix store, if the user named one, and give the memory back. The session is of no more use."""
        if self._closed:
            return
        self.reset()
        self._closed = True
        self._workshop.close()
        self._shared.sessions.discard(self)
        if self._workshop.store is not None:
            self._workshop.store.save()

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a raw prompt."""
        return len(self.text.encode(prompt))

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        accept: str = "coupled",
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[Event]:
        """Continue a raw text, or token ids, as they are.

        max_tokens: None means until the context is full. sampling: None means the bundle's own defaults.
        Arguments are checked at once; ValueError names what is wrong.
        """
        self._memory.begin()
        if isinstance(prompt, str):
            self._check_text(prompt)
            ids = self.text.encode(prompt)
        else:
            ids = [_index("token id", t) for t in prompt]
        return self._start(ids, max_tokens, sampling, accept, seed, stop)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        accept: str = "coupled",
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[Event]:
        """Answer a conversation; what it shares with the last call is not computed again."""
        if self._chat is None:
            raise BundleError(
                f"{self.bundle.manifest.name} has no chat template: continue raw text instead (run --raw, or generate)"
            )
        if not messages:
            raise ValueError("the conversation is empty: give at least one message")
        for message in messages:
            if not all(isinstance(message.get(key), str) for key in ("role", "content")):
                raise ValueError(
                    f"a message needs a 'role' and a 'content', both text, not {dict(message)!r:.80}"
                )
        for message in messages:
            self._check_text(message["content"], empty=True)
        self._check_growth(sum(len(message["content"]) for message in messages))
        ids = self._chat.encode(messages)
        return self._start(ids, max_tokens, sampling, accept, seed, stop)

    def _start(
        self,
        ids: Sequence[int],
        max_tokens: int | None,
        sampling: Sampling | None,
        accept: str,
        seed: int | None,
        stop: Sequence[str],
    ) -> Iterator[Event]:
        self._check_open()
        vocab = self.bundle.manifest.target.vocab
        chosen = self._defaults() if sampling is None else sampling
        validate(chosen, vocab)
        if not ids:
            raise ValueError("the prompt is empty: give some text to continue")
        if (worst := min(ids)) < 0 or (worst := max(ids)) >= vocab:
            raise ValueError(f"token id {worst} is outside the vocabulary of {vocab}")
        max_tokens = _whole("max_tokens", max_tokens)
        slides = self._settings.overflow == "slide"
        room = sys.maxsize if slides else self.context - len(ids)
        if room < 1:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and the context holds {self.context}: shorten the prompt, begin a "
                "new conversation"
                + ("" if self.context == self.bundle.manifest.target.context else ", raise --context")
                + ", or go on without its oldest part (--overflow slide)"
            )
        if seed is None:
            seed = secrets.randbits(32) if chosen.temperature > 0 else 0
        if not 0 <= _index("seed", seed) < 2**64:
            raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, not {seed}")
        request = Request(chosen, accept, seed, 0, len(ids))
        make_rule(request)  # says now what is wrong with it
        stream = TextStream(self.text, ids, stop, frozenset(self.bundle.generation.eos_ids))
        self.stats = Statistics(
            drafter=self.drafter_name,
            seed=seed,
            prompt_tokens=len(ids),
            devices={"target": self._target.provider, **self._workshop.providers()},
            planned_bytes=self._shared.planned,
            cache=self._settings.cache,
        )
        self.stats.seconds["load"] = self._load_seconds
        limit = room if max_tokens is None else min(room, max_tokens)
        rounds = self._rounds(request, self._drafting, array("q", ids), limit, self.stats)
        return self._run(rounds, stream, self.stats, self._drafting)

    def _rounds(
        self, request: Request, drafting: Drafting, ids: array[int], room: int, stats: Statistics
    ) -> Iterator[Outcome]:
        """Read the prompt, then decode; every round is refused once something else was done with the session.

        A context that is full slides: what the window keeps is read again, and decoding goes on from there.
        """
        self._turn += 1
        turn, end = self._turn, len(ids) + room
        first = True
        while len(ids) < end:
            place = window(len(ids) + 1, self.context)
            kept = place.of(ids)
            length = len(kept)
            segment = replace(request, number=place.number, prompt_length=place.place(request.prompt_length))
            stats.slides += place.number > 0
            left = min(end - len(ids), self.context - length)
            for outcome in self._segment(segment, drafting, kept, left, stats, first):
                yield outcome
                if self._turn != turn:
                    raise ValueError(
                        "this answer was given up: another one was started or the session was reset "
                        "(load a session for each conversation that runs at the same time)"
                    )
            ids.extend(kept[length:])
            first = False

    def _segment(
        self, request: Request, drafting: Drafting, ids: list[int], room: int, stats: Statistics, first: bool
    ) -> Iterator[Outcome]:
        """Read what the cache does not hold yet and decode as far as the context goes."""
        seconds, drafter, control = stats.seconds, drafting.drafter, drafting.control
        target, timed = TimedTarget(self._target, seconds), TimedDrafter(drafter, seconds)
        rule = TimedRule(make_rule(request), seconds)
        rng = np.random.default_rng([request.seed, request.number, 0])
        reused = self._target.keep_common(ids[:-1])
        drafter.begin(request)
        if first:
            stats.reused_tokens = reused
            control.begin(request, seconds, reused)
        else:
            control.moved(len(ids))
        read_prompt(target, timed, ids, self._settings.chunk)
        bounded = control if self.plan is None else self._watched(control, self.plan)
        yield from decode(target, timed, rule, bounded, ids, room, rng)

    def _watched(self, control: Bounded, plan: Plan) -> Watched:
        """The controller under the ladder of the plan; what a rung no longer needs is given back."""
        if self._ladder is None:
            self._ladder = ladder_of(plan)
        return Watched(control, self._ladder, self._workshop.shed, self._memory.used)

    def _run(
        self, rounds: Iterator[Outcome], stream: TextStream, stats: Statistics, drafting: Drafting
    ) -> Iterator[Event]:
        begun, seconds, whole = time.perf_counter(), stats.seconds, False

        def counted(events: Iterator[Event]) -> Iterator[Event]:
            for event in events:
                stats.generated_tokens += event.token is not None
                seconds["total"] = time.perf_counter() - begun
                yield event

        try:
            for outcome in rounds:
                stats.count(outcome)
                yield from counted(stream.push(outcome))
                if stream.finished:
                    break
            yield from counted(stream.close())
            whole = True
        except GeneratorExit:
            whole = True
            raise
        finally:
            seconds["total"] = time.perf_counter() - begun
            stats.drafter = drafting.settled
            stats.control = drafting.control.finish()
            self._memory.used()
            if not whole:
                # Something failed in the middle of a round: what the drafter holds may be half of it.
                drafting.drafter.reset()

    def _defaults(self) -> Sampling:
        return sampling_of(self.bundle.generation)


_RENDERED = 8
"""Bytes that rendering a chat takes for each character of it, while it works."""


def _index(name: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None


def _whole(name: str, value: int | None) -> int | None:
    """A count the user may leave out. Raises ValueError for what is no whole number from 1 up."""
    if value is not None and _index(name, value) < 1:
        raise ValueError(f"{name} must be 1 or more, not {value}")
    return value
