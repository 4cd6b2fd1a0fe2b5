"""The line editor of a chat: several lines, pasted ones too, the messages of earlier chats, and Tab."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import AnyFormattedText
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.defaults import create_output
from prompt_toolkit.shortcuts import CompleteStyle, PromptSession

from paceline.chat_history import InputHistory
from paceline.chat_input import CONTINUED, PROMPT, Complete, is_open, unquoted
from paceline.terminal import has_colours


class Editor:
    """Reads messages from a terminal that obeys escape sequences."""

    def __init__(self, complete: Complete, keeps_history: bool) -> None:
        output = create_output(sys.stdout)
        if hasattr(output, "enable_cpr"):
            # Nothing here needs to know where the cursor stands, and not every terminal answers.
            output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            [("ansicyan", PROMPT)],
            multiline=True,
            prompt_continuation=_continuation,
            history=_History(InputHistory() if keeps_history else None),
            completer=_Completer(complete),
            complete_style=CompleteStyle.READLINE_LIKE,
            complete_while_typing=False,
            key_bindings=_keys(),
            enable_suspend=True,
            color_depth=None if has_colours(sys.stdout) else ColorDepth.DEPTH_1_BIT,
            output=output,
        )

    def read(self) -> str | None:
        """The next message or command, None at Ctrl-D. Raises KeyboardInterrupt for Ctrl-C."""
        try:
            return unquoted(self._session.prompt())
        except EOFError:
            return None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is typed is not echoed into an answer, and lines that are pasted stay one message."""
        try:
            import termios
        except ImportError:  # Windows reads keys from elsewhere
            yield
            return
        keyboard = sys.stdin.fileno()
        before = termios.tcgetattr(keyboard)
        quiet = [*before]
        quiet[3] &= ~termios.ECHO
        termios.tcsetattr(keyboard, termios.TCSANOW, quiet)
        try:
            _send(_MARKS_PASTES)
            yield
        finally:
            _send(_MARKS_NO_PASTES)
            termios.tcsetattr(keyboard, termios.TCSANOW, before)


_MARKS_PASTES, _MARKS_NO_PASTES = "\033[?2004h", "\033[?2004l"


def _send(sequence: str) -> None:
    sys.stdout.write(sequence)
    sys.stdout.flush()


def _continuation(width: int, line: int, wrapped: int) -> AnyFormattedText:
    """What stands before a further line; one that is only broken gets room."""
    return [("ansicyan", " " * len(CONTINUED) if wrapped else CONTINUED)]


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    @keys.add("c-j")  # what the terminal makes of Enter while an answer is written
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.newline(copy_margin=False)
        elif buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("escape", "c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


class _Completer(Completer):
    """Completes commands, and what follows them."""

    def __init__(self, complete: Complete) -> None:
        self._complete = complete

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What may stand for the end of a line that begins with a slash."""
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        at, words = self._complete(text)
        for word in words:
            yield Completion(word, at - len(text))


class _History(History):
    """The messages of this chat and, where they are kept, of earlier ones."""

    def __init__(self, kept: InputHistory | None) -> None:
        super().__init__()
        self._kept = kept

    def load_history_strings(self) -> Iterable[str]:
        """Newest first."""
        return reversed(self._kept.load() if self._kept else [])

    def store_string(self, string: str) -> None:
        """Remember a message, but not twice in a row."""
        if self._kept and string.strip() and self.get_strings()[-2:-1] != [string]:
            self._kept.add(string)
