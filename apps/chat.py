"""`paceline chat`: a conversation in the terminal, or over a pipe."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.flags import with_flags
from paceline.options import Choosing, Drafting, Ending, Loading

if TYPE_CHECKING:
    from paceline.conversation import Conversation
    from paceline.runtime.engine import Session


@with_flags
def chat(
    *,
    system_prompt: Annotated[
        str | None,
        typer.Option("-s", "--system-prompt", metavar="TEXT", help="Instructions for the whole chat."),
    ] = None,
    show_draft: Annotated[
        bool, typer.Option("--show-draft", help="Colour the tokens that were drafted and accepted.")
    ] = False,
    drafting: Drafting,
    loading: Loading,
    ending: Ending,
    choosing: Choosing,
) -> None:
    """Talk with a model; /help inside lists the commands."""
    from paceline.chat_screen import Screen
    from paceline.chat_settings import Settings
    from paceline.conversation import Conversation

    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with loading.open(drafting.drafter, drafting.suffix_store) as session:
        if not session.has_template:
            raise ValueError("this bundle has no chat template: continue text with 'paceline run --raw'")
        settings = Settings(
            sampling=choosing.sampling(session.bundle.generation),
            accept=choosing.accept,
            seed=choosing.seed,
            max_tokens=ending.max_tokens,
            stop=tuple(ending.stop),
        )
        screen = Screen(interactive, show_draft)
        screen.note(_greeting(session))
        converse(Conversation(session, settings, system_prompt, screen))


def _greeting(session: Session) -> str:
    manifest = session.bundle.manifest
    return f"{manifest.name}, drafter {session.drafter_name}. /help lists the commands."


def converse(chat: Conversation) -> None:
    """Read messages and commands until the end of the input or /exit."""
    from paceline.chat_commands import perform

    _prepare_stdin(chat.screen.interactive)
    while not chat.over:
        try:
            line = _read_message(chat.screen.interactive)
        except KeyboardInterrupt:
            if not chat.screen.interactive:
                raise
            print()
            chat.screen.note("/exit or Ctrl-D leaves")
            continue
        if line is None:
            chat.screen.note("")
            return
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                perform(chat, line)
            else:
                chat.answer(line.strip())
        except (ValueError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            chat.screen.error(str(error))


def _prepare_stdin(interactive: bool) -> None:
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (importing it gives input() line editing and a history)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")


def _read_message(interactive: bool) -> str | None:
    """One message; a backslash at the end of a line joins the next one. None at the end of the input."""
    lines: list[str] = []
    while True:
        line = _read_line((">>> ", "... ")[bool(lines)] if interactive else None)
        if line is None:
            return "\n".join(lines) if lines else None
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _read_line(prompt: str | None) -> str | None:
    if prompt is None:
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
    try:
        return input(prompt)
    except EOFError:
        return None
