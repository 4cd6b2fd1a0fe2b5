"""Reads the prompt of `paceline run`: from the argument, a file or stdin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

import typer

_MOST_BYTES = 16 << 20


def read_prompt(argument: str | None, file: Path | None) -> str:
    """The prompt's text, one final line break dropped. Raises ValueError where it is empty or no text."""
    if argument is not None and file is not None:
        raise typer.BadParameter("give a PROMPT or a file, not both", param_hint="--file")
    if file is not None:
        with file.open("rb") as source:
            text = _decode(source, str(file))
    elif argument == "-":
        text = _decode(sys.stdin.buffer, "stdin")
    elif argument is not None:
        text = argument
    else:
        raise typer.BadParameter("give one, '-' for stdin, or --file FILE", param_hint="PROMPT")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise ValueError("the prompt is empty: give some text to answer or to continue")
    return text


def _decode(source: IO[bytes], name: str) -> str:
    raw = source.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise ValueError(f"{name} is longer than {_MOST_BYTES >> 20} MiB: no model reads that much at once")
    if b"\0" in raw:
        raise ValueError(f"{name} is not text (it holds zero bytes): give a UTF-8 text file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text (byte {error.start}): convert it first") from None
