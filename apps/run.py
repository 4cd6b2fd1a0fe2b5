"""`paceline run`: one answer to stdout, nothing else there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.errors import INTERRUPTED
from paceline.flags import with_flags
from paceline.options import Choosing, Drafting, Ending, JsonFlag, Loading
from paceline.printable import fit_for, say, say_json
from paceline.prompt import read_prompt
from paceline.stats_text import SLID

if TYPE_CHECKING:
    from paceline.runtime.events import Event
    from paceline.runtime.session import Session


@with_flags
def run(
    *,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", show_default=False, help="The question or text; - reads stdin."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", metavar="FILE", help="Read the prompt from a text file.")
    ] = None,
    system_prompt: Annotated[
        str | None,
        typer.Option("-s", "--system-prompt", metavar="TEXT", help="Instructions before the question."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")
    ] = False,
    as_json: JsonFlag = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print statistics to stderr.")] = False,
    drafting: Drafting,
    loading: Loading,
    ending: Ending,
    choosing: Choosing,
) -> None:
    """Answer one prompt; stdout carries the answer and nothing else."""
    if raw and system_prompt is not None:
        raise typer.BadParameter(
            "a raw text has no system prompt: leave out --raw", param_hint="--system-prompt"
        )
    text = read_prompt(prompt, file)
    with loading.open(drafting.drafter, drafting.suffix_store) as session:
        if system_prompt is not None and not session.has_template:
            raise ValueError(
                "this bundle has no chat template, so it takes no --system-prompt: put it in the prompt"
            )
        events = _start(session, text, system_prompt, raw, ending, choosing)
        answer = _Answer()
        interrupted = answer.read(events, show=not as_json)
        if session.stats.slides:
            say(f"paceline: {SLID.format(context=session.context)}", to=sys.stderr)
        if as_json:
            say_json(answer.as_dict(session), readable=True)
        if stats:
            from paceline.stats_text import statistics_lines

            say(*statistics_lines(session.stats), to=sys.stderr)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _start(
    session: Session, text: str, system: str | None, raw: bool, ending: Ending, choosing: Choosing
) -> Iterator[Event]:
    sampling = choosing.sampling(session.bundle.generation)
    if raw or not session.has_template:
        return session.generate(
            text,
            max_tokens=ending.max_tokens,
            sampling=sampling,
            accept=choosing.accept,
            seed=choosing.seed,
            stop=ending.stop,
        )
    messages = [{"role": "system", "content": system}] if system is not None else []
    return session.chat(
        [*messages, {"role": "user", "content": text}],
        max_tokens=ending.max_tokens,
        sampling=sampling,
        accept=choosing.accept,
        seed=choosing.seed,
        stop=ending.stop,
    )


@dataclass(slots=True)
class _Answer:
    """What came of one generation."""

    pieces: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = "cancelled"

    def read(self, events: Iterator[Event], show: bool) -> bool:
        """Follow the events to their end, or to Ctrl-C: then True."""
        try:
            for event in events:
                self._take(event, show)
        except KeyboardInterrupt:
            _close(events)
            if show and sys.stdout.isatty():
                print()
            return True
        if show and not (self.pieces and self.pieces[-1].endswith("\n")):
            sys.stdout.write("\n")
        return False

    def _take(self, event: Event, show: bool) -> None:
        if event.token is not None:
            self.tokens.append(event.token)
        if event.finish_reason is not None:
            self.finish_reason = event.finish_reason
        if event.text:
            self.pieces.append(event.text)
            if show:
                sys.stdout.write(fit_for(sys.stdout, event.text))
                sys.stdout.flush()

    def as_dict(self, session: Session) -> dict[str, Any]:
        """The object of `run --json`."""
        return {
            "text": "".join(self.pieces),
            "token_ids": self.tokens,
            "prompt_tokens": session.stats.prompt_tokens,
            "finish_reason": self.finish_reason,
            "drafter": session.stats.drafter,
            "seed": session.stats.seed,
            "stats": session.stats.as_dict(),
        }


def _close(events: Iterator[Event]) -> None:
    close = getattr(events, "close", None)
    if close is not None:
        close()
