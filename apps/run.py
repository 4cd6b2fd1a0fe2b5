"""`paceline run`: one answer to stdout, nothing else there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.asking import Asking, no_template, unread
from paceline.choosing import Choosing, Ending
from paceline.errors import INTERRUPTED
from paceline.flags import with_flags
from paceline.options import STATS_FULL, Drafting, JsonFlag, Loading
from paceline.printable import say, say_json
from paceline.prompt import read_prompt, split_words
from paceline.repeating import repeat_words, repeats
from paceline.stats_text import SLID, failed_words, left_out_words, length_words, lost_words
from paceline.terminal import Stream, remark

if TYPE_CHECKING:
    from paceline.runtime.answer import Answer
    from paceline.runtime.session import Session


@with_flags
def run(
    *,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DIR] PROMPT",
            show_default=False,
            help="The question or text, in quotes; - or none reads stdin.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", metavar="FILE", help="Read the prompt from a text file.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")
    ] = False,
    as_json: JsonFlag = False,
    stats: Annotated[
        bool,
        typer.Option(
            "--stats",
            help="Print statistics to stderr; '--stats full' adds what drafters and controller did.",
        ),
    ] = False,
    stats_full: Annotated[bool, typer.Option(STATS_FULL, hidden=True)] = False,
    asking: Asking,
    drafting: Drafting,
    loading: Loading,
    ending: Ending,
    choosing: Choosing,
) -> None:
    """Answer one prompt; stdout carries the answer and nothing else."""
    folder, prompt = split_words(words or [], file)
    if raw and asking.given():
        raise typer.BadParameter("a raw text has no template: leave out --raw", param_hint=asking.given()[0])
    text, tools = read_prompt(prompt, file, folder), asking.tools
    with loading.of(folder).open(drafting.drafter, drafting.suffix_store) as session:
        if asking.given() and not session.has_template:
            raise ValueError(
                f"{no_template(session)}, so {asking.given()[0]} cannot be followed: put it in the prompt"
            )
        choices: dict[str, Any] = {
            "max_tokens": ending.max_tokens,
            "sampling": choosing.sampling(session.bundle.generation),
            "accept": choosing.accept,
            "seed": choosing.seed,
            "stop": ending.stop,
        }
        if session.has_template and not raw:
            answer = _chat(session, text, tools, asking, choices)
        else:
            if session.template_fault and not raw:
                remark(f"{no_template(session)}; the prompt is continued as raw text, as with --raw")
            answer = session.generate(text, **choices)
        interrupted = _read(answer, show=not as_json)
        _say_limits(answer, session, ending.max_tokens)
        if (interrupted or answer.finish_reason == "length") and repeats(answer.tokens):
            remark(repeat_words(choices["sampling"], "--"))
        if as_json:
            say_json(as_dict(answer, session.drafter_name), readable=True)
        if stats or stats_full:
            from paceline.stats_text import statistics_lines

            say(*statistics_lines(answer.stats, stats_full), to=sys.stderr)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _chat(
    session: Session, text: str, tools: list[dict[str, Any]] | None, asking: Asking, choices: dict[str, Any]
) -> Answer:
    """Ask through the chat template, and say what of the question the template does not show."""
    messages = [{"role": "system", "content": asking.system_prompt}] if asking.system_prompt else []
    messages.append({"role": "user", "content": text})
    answer = session.chat(
        messages, tools=tools, enable_thinking=asking.think, template_values=asking.values, **choices
    )
    for role in session.left_out(messages):
        remark(left_out_words(role, session.bundle.manifest.name))
    for line in unread(session, tools, asking.think, asking.values):
        remark(line)
    return answer


def _read(answer: Answer, show: bool) -> bool:
    """Follow the answer to its end, or to Ctrl-C: then True."""
    stream = Stream()
    try:
        for event in answer:
            if show:
                stream.write(event.text)
    except KeyboardInterrupt:
        answer.close()
        if show and sys.stdout.isatty():
            stream.close()
        return True
    if show:
        stream.line_open = stream.line_open or not answer.text
        stream.close()
    return False


def _say_limits(answer: Answer, session: Session, max_tokens: int | None) -> None:
    """What nobody should miss; --max-tokens does what was asked for, and needs no word."""
    if failure := failed_words(answer.stats):
        remark(failure)
    for line in lost_words(answer.stats):
        remark(line)
    if answer.stats.slides:
        remark(SLID.format(context=session.context))
    if answer.finish_reason == "length":
        limit = length_words(answer.stats, max_tokens, session.context, "--max-tokens")
        if limit.by_context:
            larger = session.context < session.bundle.manifest.target.context
            remark(f"{limit.text}; {'a larger --context or ' if larger else ''}--overflow slide goes on")


def as_dict(answer: Answer, drafter: str) -> dict[str, Any]:
    """The object of `run --json`."""
    stats = answer.stats
    return {
        "text": answer.text,
        "token_ids": answer.tokens,
        "prompt_tokens": stats.prompt_tokens,
        "finish_reason": answer.finish_reason or "cancelled",
        "drafter": drafter,
        "seed": stats.seed,
        "stats": stats.as_dict(),
    }
