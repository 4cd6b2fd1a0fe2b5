"""A loaded bundle that generates: what the Python API and every command decode with."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from paceline.memory.errors import ArgumentError
from paceline.memory.plan import Plan
from paceline.runtime import arguments
from paceline.runtime.answer import Answer, Engine, Turn, events_of
from paceline.runtime.assemble import Drafting, Workshop
from paceline.runtime.budget.planning import check_room, ladder_of
from paceline.runtime.budget.pressure import Watch
from paceline.runtime.bundle.generation import sampling_of, under_rules
from paceline.runtime.contracts import DraftLimit
from paceline.runtime.drafters.names import Name, parse
from paceline.runtime.loaded import Shared
from paceline.runtime.manifest import BundleError
from paceline.runtime.model.ort import DeviceError
from paceline.runtime.model.saved import load_cache, save_cache
from paceline.runtime.request import Accept, Conversation, Request, Sampling
from paceline.runtime.rules.registry import make_rule
from paceline.runtime.settings import Settings
from paceline.runtime.stats import Statistics
from paceline.runtime.target import on_cpu
from paceline.runtime.text.chat import ChatText


class Session:
    """One sequence of one bundle: its cache lives on between calls and is reused by common prefix.

    One thread at a time; `another` gives a session for another thread, or for another conversation. Close it, or
    use it as a context manager.
    """

    def __init__(
        self, shared: Shared, settings: Settings, drafter: Name, begun: float, plan: Plan | None = None
    ) -> None:
        shared.memory.begin()
        self.bundle, self.text, self.learner = shared.bundle, shared.text, shared.learner
        self._chat = None if shared.template is None else ChatText(shared.text, shared.template)
        self.plan, self._shared = plan, shared
        self._settings = on_cpu(settings) if shared.fallen else settings
        self._workshop = Workshop(shared, self._settings)
        self._target = self._workshop.target()
        self._turn = Turn()
        self._closed = False
        self._memory = shared.memory
        self._watch: Watch | None = None
        self._draftings: dict[str, Drafting] = {}
        self._memory.used()
        self._draft_with(drafter)
        self.stats = Statistics(self.drafter_name, placed=dict(settings.reasons), mirror=settings.mirrored)
        shared.sessions.add(self)
        self._memory.used()
        self._load_seconds = time.perf_counter() - begun

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._target.length} of {self.context} tokens"
        return f"<Session of {self.bundle.manifest.name}, drafter {self.drafter_name}, {state}>"

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
            raise ArgumentError("the prompt is empty: give some text to continue")
        most = sys.maxsize if self.plan is None else self.plan.longest_text
        if 4 * len(text) > most and (size := len(text.encode(errors="replace"))) > most:
            raise ArgumentError(
                f"the memory plan has room to tokenize {most} bytes of text at once, and this one has {size}: "
                "shorten it or give more memory"
            )

    def _check_growth(self, characters: int) -> None:
        """Raise ValueError where a conversation that never ends would pass the budget in the end."""
        self._memory.begin()
        if self.plan is None or self.plan.budget is None:
            return
        if (used := self._memory.used()) + _RENDERED * characters > self.plan.budget:
            grown = (
                f"a conversation of {characters} characters" if used <= self.plan.budget else "the process"
            )
            raise ArgumentError(
                f"{grown} has outgrown the memory plan: begin a new one, or start again with more memory"
            )

    def _check_open(self) -> None:
        if self._workshop.dead:
            raise DeviceError(self._workshop.dead)
        if self._closed:
            raise ArgumentError("this session was closed: load a new one")

    @property
    def has_template(self) -> bool:
        """Whether the bundle can chat."""
        return self._chat is not None

    @property
    def template_fault(self) -> str | None:
        """What is wrong with a chat template that cannot be read; None where there is none, or a good one."""
        return self._shared.template_fault

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._settings.context

    @property
    def device(self) -> str:
        """Where the target runs."""
        return self._settings.places.target.name

    @property
    def cache(self) -> str:
        """In what form the context is kept: fp32, fp16 or int8."""
        return self._target.cache.form

    def drafter_names(self) -> list[str]:
        """Single drafters that this bundle can run."""
        return self._workshop.names()

    def held_bytes(self) -> dict[str, int]:
        """Bytes of caches, buffers and tables, by part of the plan."""
        limit = DraftLimit(self._settings.room.nodes, self._settings.room.nodes)
        drafts = self._workshop.draft_bytes() + self._workshop.table_bytes(limit)
        return {"target": self._target.cache.bytes + self._target.logit_bytes, "drafter": drafts}

    def set_drafter(self, name: str) -> None:
        """Draft with another drafter from the next call on. Raises ValueError that lists what there is."""
        self._check_open()
        with self._turn.lock:
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
                raise ArgumentError(
                    f"drafter {name.text!r} reads {', '.join(missing)} of the target and this bundle gives "
                    f"{', '.join(offered) or 'no taps'}: export it again with "
                    f"`paceline export --taps {','.join(missing)}`"
                )
            self._draftings[name.text] = made
            self._memory.used()
        self._drafting = self._draftings[name.text]
        self._workshop.read_by(self._drafting.drafter)
        self.drafter_name = name.text

    def reset(self) -> None:
        """Forget the sequence: caches and what drafters learnt from it. An answer that was under way ends."""
        with self._turn.lock:
            self._turn.holder = None
            self._target.rewind(0)
            if self._chat is not None:
                self._chat.forget()
            for drafting in self._draftings.values():
                drafting.drafter.reset()

    def save(self, path: str | Path) -> int:
        """Write the cache to a file; returns its bytes. Raises ValueError, with every file as it was."""
        self._check_open()
        with self._turn.lock:
            return save_cache(arguments.path("the file", path), self.bundle, self._target)

    def restore(self, path: str | Path) -> int:
        """Go on from a saved cache: a text that begins with its tokens is not read again. Returns how many these are.

        Raises ValueError, with the session as it was, for a file that is damaged or that this session cannot use.
        """
        self._check_open()
        with self._turn.lock:
            restored = load_cache(arguments.path("the file", path), self.bundle, self._target)
            self._turn.holder = None
            for drafting in self._draftings.values():
                drafting.drafter.reset()
        return restored

    def close(self) -> None:
        """Write what was learnt for the next session, and give the memory back. The session is of no more use."""
        if self._closed:
            return
        with self._turn.lock:
            self.reset()
            self._closed = True
            self._workshop.close()
        self._shared.sessions.discard(self)
        self._shared.keep_learned()
        if self._workshop.store is not None:
            self._workshop.store.save()

    @property
    def defaults(self) -> Sampling:
        """How tokens are chosen where a call does not say: as the bundle's authors do, else greedily."""
        return sampling_of(self.bundle.generation)

    def encode(self, text: str) -> list[int]:
        """Token ids of a raw text, as `generate` reads it."""
        if not isinstance(text, str):
            raise ArgumentError(f"a text is needed, not {type(text).__name__}")
        self._check_text(text, empty=True)
        return self.text.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special ones show nothing."""
        return self.text.decode(arguments.token_ids(ids, self.bundle.manifest.target.vocab))

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        accept: Accept = "coupled",
        seed: int | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> Answer:
        """Continue a raw text, or token ids, as they are.

        max_tokens: None means until the context is full. sampling: None means `defaults`; `Sampling()` has none of
        them.
        logprobs: events carry the probability of their token, and so many of the likeliest (0 to 100).
        Arguments are checked at once; ArgumentError, a ValueError, names what is wrong.
        """
        self._memory.begin()
        if isinstance(prompt, str):
            self._check_text(prompt)
            prompt = self.text.encode(prompt)
        ids = arguments.token_ids(prompt, self.bundle.manifest.target.vocab)
        return self._start(ids, max_tokens, sampling, accept, seed, stop, logprobs)

    def chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        enable_thinking: bool | None = None,
        template_values: Mapping[str, object] | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        accept: Accept = "coupled",
        seed: int | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> Answer:
        """Answer a conversation; what it shares with the last call is not computed again.

        A message has a `role` and a `content`: a text, or parts `{"type": "text", "text": ...}`. tools: as the template
        shows them to the model. template_values: more variables for the template, of which `enable_thinking` is one
        (None leaves it to the template). The rest is as in `generate`.
        """
        asked = arguments.conversation(messages, tools, enable_thinking, template_values)
        return self._start(self._encoded(asked), max_tokens, sampling, accept, seed, stop, logprobs, asked)

    def chat_tokens(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        enable_thinking: bool | None = None,
        template_values: Mapping[str, object] | None = None,
    ) -> Sequence[int]:
        """Token ids of a conversation, as `chat` reads it."""
        return self._encoded(arguments.conversation(messages, tools, enable_thinking, template_values))

    def _encoded(self, asked: Conversation) -> Sequence[int]:
        for message in asked.messages:
            self._check_text(str(message.get("content") or ""), empty=True)
        self._check_growth(arguments.characters(asked.messages))
        return self._template().encode(asked.messages, tools=asked.tools, values=asked.values)

    def left_out(self, messages: Sequence[Mapping[str, object]]) -> list[str]:
        """Roles of the messages that the chat template never shows to the model."""
        return self._template().left_out(arguments.messages_of(messages))

    def unread(self, variables: Sequence[str]) -> list[str]:
        """Those of some variables, such as "tools" and "enable_thinking", that the chat template never names."""
        return self._template().unread(variables)

    def _template(self) -> ChatText:
        if self._chat is None:
            raise BundleError(
                f"{self.template_fault or f'{self.bundle.manifest.name} has no chat template'}: continue raw text "
                "instead (`paceline run --raw`, in Python: generate)"
            )
        return self._chat

    agenerate = events_of(generate)
    achat = events_of(chat)

    def _start(
        self,
        ids: Sequence[int],
        max_tokens: int | None,
        sampling: Sampling | None,
        accept: Accept,
        seed: int | None,
        stop: Sequence[str],
        logprobs: int | None,
        asked: Conversation | None = None,
    ) -> Answer:
        self._check_open()
        vocab = self.bundle.manifest.target.vocab
        chosen = arguments.sampling_of(sampling, self.defaults, vocab)
        chosen = under_rules(chosen, self.bundle.generation)
        max_tokens = arguments.count("max_tokens", max_tokens)
        if (arguments.count("logprobs", logprobs, 0) or 0) > min(_MOST_LOGPROBS, vocab):
            raise ArgumentError(f"logprobs must be at most {min(_MOST_LOGPROBS, vocab)}, not {logprobs}")
        room = self._room(len(ids))
        request = Request(chosen, accept, arguments.seed_of(seed, chosen), 0, len(ids), None, asked)
        make_rule(request)  # says now what is wrong with it
        stream = self.text.stream(ids, stop, frozenset(self.bundle.generation.eos_ids))
        self.stats = Statistics(
            drafter=self.drafter_name,
            seed=request.seed,
            prompt_tokens=len(ids),
            devices={"target": self._target.provider, **self._workshop.providers()},
            planned_bytes=self._shared.planned,
            cache=self.cache,
            lost=self._workshop.lost,
            placed=dict(self._settings.reasons),
            mirror=self._settings.mirrored,
        )
        self.stats.seconds["load"] = self._load_seconds
        limit = room if max_tokens is None else min(room, max_tokens)
        return Answer(self._engine(), request, ids, limit, stream, self.stats, logprobs)

    def _room(self, tokens: int) -> int:
        """Tokens that an answer to so many may have."""
        if not tokens:
            raise ArgumentError("the prompt is empty: give some text to continue")
        if self._settings.overflow == "slide":
            return sys.maxsize
        room = self.context - tokens
        if room < 1:
            most = self.bundle.manifest.target.context
            larger = "" if self.context == most else ", raise --context (in Python: context=)"
            raise ArgumentError(
                f"the prompt has {tokens} tokens and the context holds {self.context}: shorten the prompt, begin a "
                f"new conversation{larger}, or go on without its oldest part "
                '(--overflow slide, in Python: overflow="slide")'
            )
        return room

    def _engine(self) -> Engine:
        """What the next answer is made with."""
        if self._watch is None and self.plan is not None:
            self._watch = Watch(ladder_of(self.plan), self._workshop.shed, self._memory.used)
        held, shop = (self._watch, self._memory, self._turn, self._settings.chunk), self._workshop
        move = None if self._settings.places.target.on_cpu else self._move
        more = shop.lessons, shop.beside, self._shared.journal, move
        return Engine(self._target, self._drafting, *held, *more)

    def _move(self, error: Exception) -> None:
        """Let the target, whose device failed so, go on on the CPU. Raises DeviceError where that cannot be."""
        self._settings = self._workshop.move_target(error, self.plan)
        self.bundle = self._shared.bundle


_RENDERED = 8
"""Bytes that rendering a chat takes for each character of it, while it works."""
_MOST_LOGPROBS = 100
