"""`paceline chat`: a conversation in the terminal, or over a pipe."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.asking import Asking, no_template
from paceline.choosing import Choosing, Ending
from paceline.errors import one_line, trace
from paceline.flags import with_flags
from paceline.interrupts import listen_again
from paceline.options import BundleArgument, Drafting, Loading
from paceline.terminal import NoColourFlag

if TYPE_CHECKING:
    from paceline.chat_input import Reader
    from paceline.conversation import Conversation
    from paceline.runtime.session import Session


@with_flags
def chat(
    *,
    folder: BundleArgument = None,
    show_draft: Annotated[
        bool, typer.Option("--show-draft", help="Colour the tokens that were drafted and accepted.")
    ] = False,
    no_stats: Annotated[
        bool, typer.Option("--no-stats", help="No line about speed after each answer (/set stats on|off).")
    ] = False,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Neither keep what is typed nor offer what was typed before.")
    ] = False,
    no_color: NoColourFlag = False,
    asking: Asking,
    drafting: Drafting,
    loading: Loading,
    ending: Ending,
    choosing: Choosing,
) -> None:
    """Talk with a model; /help inside lists the commands."""
    from paceline.chat_commands import completions
    from paceline.chat_input import make_reader
    from paceline.chat_screen import Screen
    from paceline.chat_settings import Settings
    from paceline.conversation import Conversation
    from paceline.runtime.request import validate

    tools = asking.tools
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    overflow = loading.overflow or "slide"
    # What leaves a full context are whole turns of the conversation, not tokens of a window.
    loading = dataclasses.replace(loading.of(folder), overflow="stop")
    # Before the model: what the editor takes is part of what a budget is for.
    reader = make_reader(interactive, lambda line: completions(talk, line), not no_history)
    with loading.open(drafting.drafter, drafting.suffix_store) as session:
        if not session.has_template:
            raise ValueError(f"{no_template(session)}: continue text with 'paceline run --raw'")
        sampling = choosing.sampling(session.bundle.generation)
        validate(sampling, session.bundle.manifest.target.vocab)
        settings = Settings(
            sampling=sampling,
            accept=choosing.accept,
            seed=choosing.seed,
            max_tokens=ending.max_tokens,
            stop=tuple(ending.stop),
            overflow=overflow,
            think=asking.think,
            stats=not no_stats,
            show_draft=show_draft,
        )
        screen = Screen(interactive)
        for line in greeting(session):
            screen.note(line)
        talk = Conversation(session, settings, asking.system_prompt, screen, tools, asking.values)
        failed = converse(talk, reader)
    if failed and not sys.stdin.isatty():
        raise typer.Exit(1)


def greeting(session: Session) -> list[str]:
    """What is talked with, in two lines."""
    from paceline.inspect import count

    manifest = session.bundle.manifest
    part = manifest.target
    weights = "" if part.quant in ("none", "keep") else f" at {part.quant}"
    return [
        f"{manifest.name}: {count(part.parameters)} parameters{weights}, context {session.context} ({session.cache}), "
        f"{session.device}, drafter {session.drafter_name}",
        "/help lists the commands; Alt-Enter begins another line, Ctrl-D leaves",
    ]


def converse(chat: Conversation, reader: Reader) -> bool:
    """Read messages and commands until the end of the input or /exit; True if one of them failed."""
    interactive = chat.screen.interactive
    failed = False
    while not chat.over:
        try:
            if interactive:
                listen_again()
            failed |= not _one_turn(chat, reader)
        except KeyboardInterrupt:
            if not interactive:
                raise
            chat.screen.note("/exit or Ctrl-D leaves")
    return failed


def _one_turn(chat: Conversation, reader: Reader) -> bool:
    """Read a message or a command and do what it asks; False if that failed."""
    from paceline.chat_commands import perform

    line = reader.read()
    if line is None:
        chat.over = True
        return True
    if not line.strip():
        return True
    done = False
    try:
        with reader.aside():
            if line.startswith("/"):
                perform(chat, line)
            else:
                chat.answer(line.strip())
        done = True
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        if not chat.screen.interactive:
            raise
        chat.screen.interrupted()
        chat.screen.note("stopped")
        done = True
    except Exception as error:  # whatever it is, what was said stays
        trace()
        chat.screen.error(one_line(error))
    chat.screen.gap()
    return done
