"""`paceline chat`: a conversation in the terminal, or over a pipe."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.errors import one_line, trace
from paceline.flags import with_flags
from paceline.interrupts import listen_again
from paceline.options import Choosing, Drafting, Ending, Loading

if TYPE_CHECKING:
    from paceline.conversation import Conversation
    from paceline.runtime.session import Session


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
    from paceline.runtime.request import validate

    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with loading.open(drafting.drafter, drafting.suffix_store) as session:
        if not session.has_template:
            raise ValueError("this bundle has no chat template: continue text with 'paceline run --raw'")
        sampling = choosing.sampling(session.bundle.generation)
        validate(sampling, session.bundle.manifest.target.vocab)
        settings = Settings(
            sampling=sampling,
            accept=choosing.accept,
            seed=choosing.seed,
            max_tokens=ending.max_tokens,
            stop=tuple(ending.stop),
        )
        screen = Screen(interactive, show_draft)
        screen.note(_greeting(session))
        failed = converse(Conversation(session, settings, system_prompt, screen))
    if failed and not sys.stdin.isatty():
        raise typer.Exit(1)


def _greeting(session: Session) -> str:
    manifest = session.bundle.manifest
    return f"{manifest.name}, drafter {session.drafter_name}. /help lists the commands."


def converse(chat: Conversation) -> bool:
    """Read messages and commands until the end of the input or /exit; True if one of them failed."""
    from paceline.chat_commands import perform

    _prepare_stdin(chat.screen.interactive)
    failed = False
    while not chat.over:
        if chat.screen.interactive:
            listen_again()
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
            break
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                perform(chat, line)
            else:
                chat.answer(line.strip())
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            if not chat.screen.interactive:
                raise
            chat.screen.interrupted()
            chat.screen.note("stopped")
        except Exception as error:  # whatever it is, what was said stays
            trace()
            chat.screen.error(one_line(error))
            failed = True
    return failed


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
