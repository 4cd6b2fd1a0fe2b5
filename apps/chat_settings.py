"""What `/set` can change: how the next answers are chosen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from paceline.runtime.request import RULES, Accept, Sampling, validate

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are chosen. None: the bundle's default, or a seed drawn for every answer."""

    sampling: Sampling
    accept: Accept = "coupled"
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    overflow: str = "slide"
    """What a full context does: "slide" lets the oldest turns leave, "stop" refuses the question."""
    think: bool | None = None
    """Whether the template lets the model think; None leaves it to the template."""
    stats: bool = True
    show_draft: bool = False

    def with_value(self, name: str, value: str) -> Settings:
        """A copy with one setting changed. Raises ValueError for an unknown name or a wrong value."""
        if name in _OF_SAMPLING:
            field, read = _OF_SAMPLING[name]
            sampling = dataclasses.replace(self.sampling, **{field: read(name, value)})
            try:
                validate(sampling)
            except ValueError as error:
                raise ValueError(str(error).replace(field, name, 1)) from None
            return dataclasses.replace(self, sampling=sampling)
        if name in _OF_ANSWER:
            field, read = _OF_ANSWER[name]
            return dataclasses.replace(self, **{field: read(name, value)})
        raise ValueError(f"no setting {name!r}: there are {', '.join(setting_names())}")

    def shown(self) -> list[tuple[str, str]]:
        """Names and values as `/set` prints them."""
        pairs = [(name, getattr(self.sampling, field)) for name, (field, _) in _OF_SAMPLING.items()]
        pairs += [(name, getattr(self, field)) for name, (field, _) in _OF_ANSWER.items()]
        return [(name, _text(value)) for name, value in pairs]


def plain_name(word: str) -> str:
    """The setting that is meant by a name of the Python API or with underscores: `temperature`, `top_p`."""
    name = word.lower().replace("_", "-")
    return {field.replace("_", "-"): short for short, (field, _) in _OF_SAMPLING.items()}.get(name, name)


def setting_names() -> list[str]:
    """Every name that `/set` understands here."""
    return [*_OF_SAMPLING, *_OF_ANSWER]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(repr(v) for v in value) or "none"
    return "none" if value is None else str(value)


def _number(least: float, most: float) -> Callable[[str, str], float]:
    def read(name: str, value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not least <= number <= most or math.isinf(number):
            upper = f" to {most:g}" if most < math.inf else " up" if least > -math.inf else ""
            wanted = f"a number from {least:g}{upper}" if least > -math.inf else "a number"
            raise ValueError(f"{name} is {wanted}, not {value!r}")
        return number

    return read


def _whole(least: int) -> Callable[[str, str], int]:
    def read(name: str, value: str) -> int:
        if not value.isdecimal() or int(value) < least:
            raise ValueError(f"{name} is a whole number from {least} up, not {value!r}")
        return int(value)

    return read


def _or_none(read: Callable[[str, str], T]) -> Callable[[str, str], T | None]:
    return lambda name, value: None if value == "none" else read(name, value)


def _one_of(name: str, value: str) -> str:
    if value not in WORDS[name]:
        *most, last = WORDS[name]
        raise ValueError(f"{name} is {', '.join(most)} or {last}, not {value!r}")
    return value


def _switch(name: str, value: str) -> bool:
    return _one_of(name, value) == "on"


def _stop(name: str, value: str) -> tuple[str, ...]:
    return () if value == "none" else (value,)


WORDS = {
    "accept": RULES,
    "overflow": ("slide", "stop"),
    "think": ("on", "off", "none"),
    "stats": ("on", "off"),
    "show-draft": ("on", "off"),
    "seed": ("none",),
    "max-tokens": ("none",),
    "stop": ("none",),
}
"""Values that are words, by the name of the setting."""

_Reader = Callable[[str, str], Any]
_OF_SAMPLING: dict[str, tuple[str, _Reader]] = {
    "temp": ("temperature", _number(0, math.inf)),
    "top-k": ("top_k", _whole(0)),
    "top-p": ("top_p", _number(0, 1)),
    "min-p": ("min_p", _number(0, 1)),
    "repeat-penalty": ("repetition_penalty", _number(0, math.inf)),
    "frequency-penalty": ("frequency_penalty", _number(-math.inf, math.inf)),
    "presence-penalty": ("presence_penalty", _number(-math.inf, math.inf)),
}
_OF_ANSWER: dict[str, tuple[str, _Reader]] = {
    "seed": ("seed", _or_none(_whole(0))),
    "max-tokens": ("max_tokens", _or_none(_whole(1))),
    "accept": ("accept", _one_of),
    "stop": ("stop", _stop),
    "overflow": ("overflow", _one_of),
    "think": ("think", _or_none(_switch)),
    "stats": ("stats", _switch),
    "show-draft": ("show_draft", _switch),
}
