"""A conversation with a session: what was said, and how the next answer is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.chat_screen import Screen
from paceline.chat_settings import Settings
from paceline.stats_text import SLID

if TYPE_CHECKING:
    from paceline.runtime.events import Event
    from paceline.runtime.session import Session

Message = dict[str, str]


class Conversation:
    """Messages, settings and the screen they are shown on."""

    def __init__(self, session: Session, settings: Settings, system: str | None, screen: Screen) -> None:
        self.session = session
        self.settings = settings
        self.system = system
        self.screen = screen
        self.messages: list[Message] = []
        self.over = False
        self.file: Path | None = None
        """Where this chat was saved or loaded: /save may replace that one without a word."""
        self._first = (settings, system, session.drafter_name)
        self._again = 0
        self._slid = False

    def answer(self, text: str) -> None:
        """Ask and stream the answer. Ctrl-C stops it: what came stays in the history.

        Raises what the session raises, with the question taken back.
        """
        self._again = 0
        before = self.messages.copy()
        self.messages.append({"role": "user", "content": text})
        self._go_on(before)

    def regenerate(self) -> None:
        """Answer the last question again; a fixed seed counts up, so that sampling gives something new.

        Raises what the session raises, with the old answer kept.
        """
        if not self.messages:
            raise ValueError("nothing to answer again: ask something first")
        before = self.messages.copy()
        if self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        self._again += 1
        self._go_on(before)

    def clear(self) -> None:
        """Forget what was said; the system prompt and the settings stay."""
        self.messages.clear()
        self.file = None
        self._slid = False
        self.session.reset()

    def reset(self) -> None:
        """Back to how the chat was started."""
        self.settings, self.system, drafter = self._first
        self.session.set_drafter(drafter)
        self.clear()

    def with_system(self) -> list[Message]:
        """All messages, the system prompt first."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.messages

    def _go_on(self, before: list[Message]) -> None:
        """Stream an answer to the messages; without one they are again what they were before."""
        pieces: list[str] = []
        stopped = False
        reason = None
        try:
            events = self._events()
            try:
                for event in events:
                    pieces.append(event.text)
                    self.screen.piece(event)
                    reason = event.finish_reason
            except KeyboardInterrupt:
                if not self.screen.interactive:
                    raise
                stopped = True
                self.screen.interrupted()
            finally:
                _close(events)
        except BaseException:
            self.messages[:] = before
            self.screen.end_answer()
            raise
        self.screen.end_answer()
        answer = "".join(pieces)
        if answer or not stopped:
            self.messages.append({"role": "assistant", "content": answer})
        else:
            self.messages[:] = before
        if self.session.stats.slides and not self._slid:
            self._slid = True
            self.screen.warn(SLID.format(context=self.session.context))
        if stopped:
            self.screen.note("stopped; /regen answers again")
        elif reason == "length":
            self.screen.note("cut at the longest length: see /set max-tokens, or /clear a full context")

    def _events(self) -> Iterator[Event]:
        settings = self.settings
        return self.session.chat(
            self.with_system(),
            max_tokens=settings.max_tokens,
            sampling=settings.sampling,
            accept=settings.accept,
            seed=None if settings.seed is None else settings.seed + self._again,
            stop=settings.stop,
        )


def _close(events: Iterator[Event]) -> None:
    close = getattr(events, "close", None)
    if close is not None:
        close()
