"""What is typed behind the flags of `paceline export`, read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

if TYPE_CHECKING:
    from paceline.export.skips.trained import Exit


def calibration(given: str | None) -> tuple[bool | None, str | None]:
    """Whether to calibrate (None: by size), and the text for it if the model is not to write it."""
    if given in (None, "none"):
        return (None if given is None else False), None
    if given == "self":
        return True, None
    return True, text_at("--calibrate", Path(given))


def text_at(flag: str, path: Path) -> str:
    """A text that a flag names. Raises ValueError that names both, and OSError."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{flag} {path} is not text in UTF-8: name a text file") from None
    if not text.strip():
        raise ValueError(f"{flag} {path} is empty: name a file with text")
    return text


def text_or_prompts(path: Path) -> str | list[str]:
    """A text, or the prompts of a JSONL file. Raises ValueError that names the file, and OSError."""
    if not path.is_file():
        raise ValueError(f"--skip: no file at {path}: name a text, or JSONL of prompts")
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        from paceline.bench_prompts import read_tasks

        return list(dict.fromkeys(task.turns[0] for task in read_tasks(path)))
    return text_at("--skip", path)


def block(text: str | None) -> int | Literal["channel"] | None:
    """What --block asks for; None for its default. Raises ValueError."""
    if text is None:
        return None
    if text == "channel":
        return "channel"
    if not text.isascii() or not text.isdecimal():
        raise ValueError(f"--block {text} is not supported: use 32, 128 or channel")
    return int(text)


def named(flag: str, given: list[str] | None, what: str = "DIR") -> dict[str, str]:
    """What follows each name, as in NAME=DIR. Raises BadParameter that names the flag."""
    found: dict[str, str] = {}
    for text in given or []:
        name, separator, source = text.partition("=")
        if not (separator and name and source):
            raise typer.BadParameter(f"{text!r} is not NAME={what}", param_hint=flag)
        if name in found:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint=flag)
        found[name] = source
    return found


def sizes(flag: str, given: str) -> tuple[int, ...]:
    """Numbers with commas between them, none for an empty text. Raises ValueError that names the flag."""
    numbers = [number.strip() for number in given.split(",")] if given.strip() else []
    if not all(number.isascii() and number.isdecimal() and len(number) < 9 for number in numbers):
        raise ValueError(
            f"{flag} {given} holds no sizes: give numbers with commas between them, as in 1,4,16"
        )
    return tuple(map(int, numbers))


def texts_by_name(flag: str, given: list[str] | None) -> dict[str, str | list[str]]:
    """By name the texts or prompts of NAME=FILE. Raises as `named` and `text_or_prompts` do."""
    return {name: text_or_prompts(Path(file)) for name, file in named(flag, given, "FILE").items()}


def layers_by_name(flag: str, given: list[str] | None) -> dict[str, tuple[int, ...]]:
    """By name the layers of NAME=LAYER,LAYER. Raises ValueError for what is no layer, and as `named` does."""
    found = {}
    for name, text in named(flag, given, "LAYER").items():
        numbers = [number.strip() for number in text.split(",")]
        if not all(map(_is_layer, numbers)):
            raise ValueError(f"{flag} {name}={text} names no layers: give numbers, as in {name}=2,8,15")
        found[name] = tuple(map(int, numbers))
    return found


def exit_or_layer(text: str) -> Exit | int:
    """A layer, or the trained exit in a folder. Raises ExportError for a folder that is none."""
    if _is_layer(text):
        return int(text)
    from paceline.export.skips.trained import read_exit

    return read_exit(Path(text))


def _is_layer(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 5
