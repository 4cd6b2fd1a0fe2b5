"""A conversation with a session: what was said, and how the next answer is made."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.asking import unread
from paceline.chat_screen import Screen
from paceline.chat_settings import Settings
from paceline.repeating import repeat_words, repeats
from paceline.stats_text import failed_words, left_out_words, length_words, lost_words, speed_words

if TYPE_CHECKING:
    from paceline.runtime.answer import Answer
    from paceline.runtime.session import Session

Message = dict[str, str]
_ROOM, _FREED = 0.25, 0.5
"""Share of the context that must be free for an answer, and that is free once old turns have left."""


class Conversation:
    """Messages, settings and the screen they are shown on."""

    def __init__(
        self,
        session: Session,
        settings: Settings,
        system: str | None,
        screen: Screen,
        tools: Sequence[dict[str, Any]] | None = None,
        values: dict[str, Any] | None = None,
    ) -> None:
        """tools, values: what the chat template gets besides the messages."""
        self.session = session
        self.settings = settings
        self.system = system
        self.screen = screen
        self._tools, self._values = tools, values
        self.messages: list[Message] = []
        self.over = False
        self.file: Path | None = None
        """Where this chat was saved or loaded: /save may replace that one without a word."""
        self._first = (settings, system, session.drafter_name)
        self._again = 0
        self._gone = 0
        self._told: set[str] = set()
        self._begun: Message | None = None
        """What a stopped /regen had said, as long as /keep may take it."""

    def answer(self, text: str) -> None:
        """Ask and stream the answer. Ctrl-C stops it: what came stays in the history.

        Raises what the session raises, with the question taken back.
        """
        self._again, self._begun = 0, None
        before = self.messages.copy()
        self.messages.append({"role": "user", "content": text})
        self._go_on(before)

    def regenerate(self) -> None:
        """Answer the last question again; a fixed seed counts up, so that sampling gives something new.

        Ctrl-C stops it: the old answer stays, and `keep` takes what came instead. Raises what the session raises, with
        the old answer kept.
        """
        if not self.messages:
            raise ValueError("nothing to answer again: ask something first")
        self._begun = None
        before = self.messages.copy()
        if self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        self._again += 1
        if not self.settings.sampling.temperature:
            self.screen.note("greedy gives the same answer again; /set temp 0.8 gives others")
        self._go_on(before)

    def keep(self) -> None:
        """Put what a stopped `regenerate` had said in the place of the old answer."""
        if self._begun is None:
            raise ValueError("nothing to keep: /keep takes what a stopped /regen had said")
        self.messages[-1], self._begun = self._begun, None

    def clear(self) -> None:
        """Forget what was said; the system prompt and the settings stay."""
        self.messages.clear()
        self._begun = None
        self.file = None
        self._gone = 0
        self._told.clear()
        self.session.reset()

    def reset(self) -> None:
        """Back to how the chat was started."""
        self.settings, self.system, drafter = self._first
        self.session.set_drafter(drafter)
        self.clear()

    def with_system(self) -> list[Message]:
        """All messages, the system prompt first."""
        return self._asked(0)

    def _asked(self, gone: int) -> list[Message]:
        """The messages but for the oldest `gone`, the system prompt first."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.messages[gone:]

    def _go_on(self, before: list[Message]) -> None:
        """Stream an answer to the messages; without one they are again what they were before.

        An answer that is stopped never takes the place of a whole one.
        """
        stopped, gone = False, self._gone
        try:
            self._make_room()
            answer = self._start()
            try:
                for event in answer:
                    self.screen.piece(event, self.settings.show_draft)
            except KeyboardInterrupt:
                if not self.screen.interactive:
                    raise
                stopped = True
                self.screen.interrupted()
            finally:
                answer.close()
        except BaseException:
            self.messages[:], self._gone = before, gone
            self.screen.end_answer()
            raise
        said = {"role": "assistant", "content": answer.text}
        replaces = len(before) > len(self.messages)
        if not stopped or (answer.text and not replaces):
            self.messages.append(said)
        else:
            self.messages[:] = before
            self._begun = said if answer.text and replaces else None
        self._tell_about(answer, stopped, replaces)

    def _tell_about(self, answer: Answer, stopped: bool, replaces: bool) -> None:
        speed = speed_words(answer.stats) if self.settings.stats and answer.stats.generated_tokens else ""
        self.screen.end_answer(speed, self.settings.show_draft)
        if stopped and replaces:
            instead = ", /keep takes this one" if self._begun else ""
            self.screen.note(f"stopped; the answer before it stays{instead}, /regen answers again")
        elif stopped:
            self.screen.note("stopped; /regen answers again")
        elif answer.finish_reason == "length":
            self._tell_limit(answer)
        failure = failed_words(answer.stats)
        if failure and "beside" not in self._told:
            self._told.add("beside")
            self.screen.warn(failure)
        for line in lost_words(answer.stats):
            if line not in self._told:
                self._told.add(line)
                self.screen.warn(line)
        if (stopped or answer.finish_reason == "length") and repeats(answer.tokens):
            self.screen.note(repeat_words(self.settings.sampling, "/set "))

    def _tell_limit(self, answer: Answer) -> None:
        limit = length_words(answer.stats, self.settings.max_tokens, self.session.context, "/set max-tokens")
        if limit.by_context:
            slides = self.settings.overflow == "slide"
            then = "the next question goes on without the oldest turns" if slides else "/clear begins anew"
            self.screen.warn(f"{limit.text}; {then}")
        else:
            self.screen.note(limit.text)

    def _make_room(self) -> None:
        """Let the oldest turns leave where the context is about to be full, and tell what the template leaves out."""
        slides, context = self.settings.overflow == "slide", self.session.context
        kept, tokens = self._gone, self._tokens(self._gone)
        need = min(int(_ROOM * context), self.settings.max_tokens or context)
        if slides and tokens > context - need:
            self._drop_turns(int((1 - _FREED) * context))
            tokens = self._tokens(self._gone)
        if tokens >= context:
            raise ValueError(
                f"this message makes a prompt of {tokens} tokens and the context holds {context}: shorten it, or start "
                "with a larger --context, if the model has one"
                if slides
                else f"the context of {context} tokens is full: /clear begins anew, /set overflow slide goes on "
                "without the oldest turns"
            )
        if self._gone > kept:
            self._tell_once(
                f"the context of {context} tokens is full: the oldest turns are left out from here on "
                "(/set overflow stop refuses instead)"
            )
        # Of the last question alone: a long chat is not rendered once more for it.
        for role in self.session.left_out(self._asked(len(self.messages) - 1)):
            self._tell_once(left_out_words(role, self.session.bundle.manifest.name))
        for line in unread(self.session, self._tools, self.settings.think, self._values):
            self._tell_once(line)

    def _drop_turns(self, most: int) -> None:
        """Leave out as few of the oldest questions with their answers as bring the chat down to `most` tokens; the
        last question stays.
        """
        asked = [at for at, m in enumerate(self.messages) if m["role"] == "user" and at > self._gone]
        if asked:
            # Halving, and each turn that leaves makes the chat shorter: a loaded chat may have thousands of them.
            fits = bisect_left(asked, True, hi=len(asked) - 1, key=lambda at: self._tokens(at) <= most)
            self._gone = asked[fits]

    def _tokens(self, gone: int) -> int:
        return len(self.session.chat_tokens(self._asked(gone), **self._template_values()))

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.screen.warn(text)

    def _template_values(self) -> dict[str, Any]:
        return {"tools": self._tools, "enable_thinking": self.settings.think, "template_values": self._values}

    def _start(self) -> Answer:
        settings = self.settings
        return self.session.chat(
            self._asked(self._gone),
            max_tokens=settings.max_tokens,
            sampling=settings.sampling,
            accept=settings.accept,
            seed=None if settings.seed is None else settings.seed + self._again,
            stop=settings.stop,
            **self._template_values(),
        )
