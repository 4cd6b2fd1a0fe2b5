"""Reads the prompt of `paceline run`: from the argument, a file or stdin."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Any

import typer

from paceline.store import find

_MOST_BYTES = 16 << 20


def split_words(words: list[str], file: Path | None) -> tuple[Path | None, str | None]:
    """The bundle, where one is named before the prompt, and the prompt. Raises BadParameter for more than that."""
    folders = [word for word in words[:1] if _is_bundle(word)]
    if folders and len(words) == (1 if file else 2):
        return Path(folders[0]), None if file else words[1]
    if folders and len(words) == 1:
        return Path(folders[0]), None
    if len(words) > 1:
        raise typer.BadParameter(
            f"put the prompt in quotes: there are {len(words)} words, and {words[0]!r:.60} is no bundle",
            param_hint="PROMPT",
        )
    return None, words[0] if words else None


def _is_bundle(word: str) -> bool:
    # Not Path.is_file: a prompt may be what no file name can be.
    if os.path.isfile(os.path.join(word, "manifest.json")):
        return True
    return not os.path.lexists(word) and find(word) is not None


def read_prompt(argument: str | None, file: Path | None, folder: Path | None = None) -> str:
    """The prompt's text, one final line break dropped; without argument and file what a pipe brings.

    folder: the bundle that was named. Raises ValueError where the text is empty or none, BadParameter where nothing
    gives one.
    """
    if argument is not None and file is not None:
        raise typer.BadParameter("give a PROMPT or a file, not both", param_hint="--file")
    if file is not None:
        with file.open("rb") as source:
            text = _decode(source, str(file))
    elif argument == "-":
        text = _decode(sys.stdin.buffer, "stdin")
    elif argument is not None:
        text = argument
    elif sys.stdin.isatty() or not (text := _decode(sys.stdin.buffer, "stdin")):
        raise typer.BadParameter(
            f"{folder} is a bundle: give the prompt behind it, or talk with 'paceline chat {folder}'"
            if folder
            else "give one, '-' for stdin, or --file FILE",
            param_hint="PROMPT",
        )
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise ValueError("the prompt is empty: give some text to answer or to continue")
    return text


def read_tools(file: Path) -> list[dict[str, Any]]:
    """The tools of a JSON file: a list of objects, or one object. Raises ValueError that names the file."""
    import json

    with file.open("rb") as source:
        text = _decode(source, str(file))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}): --tools takes a list of objects") from None
    tools = [found] if isinstance(found, dict) else found
    if not isinstance(tools, list) or not tools or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{file} is JSON but no list of tools: each is an object")
    return tools


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
