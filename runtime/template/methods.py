"""The methods of text, lists and mappings that a chat template may call; every other one is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paceline.runtime.template.marked import Marked, foreign
from paceline.runtime.template.values import (
    FaultError,
    Meter,
    Value,
    contains,
    equal,
    escaped,
    iterate,
    joined,
    kind,
    text_of,
)

_PRINTF = re.compile(r"%(?P<flags>[-+0 ]*)(?P<width>\d{0,3})(?:\.(?P<precision>\d{1,2}))?(?P<what>[sdifxX%])")
_FIELD = re.compile(r"\{\{|\}\}|\{(?P<name>\w*)\}|[{}]")


def call_method(
    owner: Value, name: str, args: Sequence[Value], kwargs: Mapping[str, Value], meter: Meter
) -> Value:
    """`owner.name(*args, **kwargs)`. Raises FaultError for a method that is not offered."""
    method = methods_of(owner).get(name)
    if method is None:
        raise FaultError(f"{name}() may not be called on {kind(owner)}")
    meter.look(owner, *args, *kwargs.values())
    return method(meter, owner, *args, **kwargs)


def methods_of(owner: Value) -> Mapping[str, Callable[..., Value]]:
    """The methods offered for a value, by name."""
    if isinstance(owner, Marked):
        return _TEXT
    if isinstance(owner, dict):
        return _MAPPING
    return _SEQUENCE if isinstance(owner, (list, tuple)) else {}


def printf(pattern: Marked, value: Value, meter: Meter) -> Marked:
    """`pattern % value` with s, d, i, f, x, X and %%; widths have at most three digits."""
    values = value if isinstance(value, tuple) else (value,)
    pieces, end, used = [], 0, 0
    meter.look(pattern)
    for place in _PRINTF.finditer(pattern.text):
        meter.spend(2)
        pieces.append(_no_percent(pattern[end : place.start()]))
        end = place.end()
        if place["what"] == "%":
            pieces.append(pattern[end - 1 : end])
            continue
        if used == len(values):
            raise FaultError("a % pattern has more places than values")
        held = values[used]
        if place["what"] == "s":
            held = _like(pattern, held, meter)
        pieces.append(_printed(place, held, meter))
        used += 1
    pieces.append(_no_percent(pattern[end:]))
    if used < len(values) and not isinstance(value, dict):
        raise FaultError("a % pattern has fewer places than values")
    return _as(pattern, joined(pieces, foreign(""), meter))


def _printed(place: re.Match[str], value: Value, meter: Meter) -> Marked:
    if place["what"] == "s":
        text = text_of(value, meter)
        if place["precision"]:
            text = text[: int(place["precision"])]
        pad = foreign(" " * max(0, int(place["width"] or 0) - len(text)))
        return text + pad if "-" in place["flags"] else pad + text
    if not isinstance(value, (int, float)):
        raise FaultError(f"%{place['what']} needs a number, not {kind(value)}")
    return foreign(place[0] % value)


def _no_percent(piece: Marked) -> Marked:
    if "%" in piece.text:
        raise FaultError("a % pattern uses a format that is not supported")
    return piece


def _format(meter: Meter, pattern: Marked, *args: Value, **kwargs: Value) -> Marked:
    pieces, end, automatic = [], 0, 0
    found: Mapping[str, Value] = {**{str(i): v for i, v in enumerate(args)}, **kwargs}
    for place in _FIELD.finditer(pattern.text):
        meter.spend(2)
        pieces.append(pattern[end : place.start()])
        end = place.end()
        name = place["name"]
        if name is None:
            if len(place[0]) == 1:
                raise FaultError("format() supports only {}, {0} and {name}")
            pieces.append(pattern[end - 1 : end])
            continue
        if not name:
            name, automatic = str(automatic), automatic + 1
        if name not in found:
            raise FaultError(f"format() is given no value for {{{name}}}")
        pieces.append(text_of(_like(pattern, found[name], meter), meter))
    return _as(pattern, joined([*pieces, pattern[end:]], foreign(""), meter))


def _as(owner: Marked, text: Marked) -> Marked:
    return text.markup() if owner.safe else text


def _like(owner: Marked, value: Value, meter: Meter) -> Value:
    """A value that becomes part of `owner`: escaped where that is markup."""
    return escaped(text_of(value, meter), meter) if owner.safe else value


def _word(value: Value) -> str:
    if not isinstance(value, Marked):
        raise FaultError(f"text is needed, not {kind(value)}")
    return value.text


def _words(meter: Meter, value: Value) -> str | tuple[str, ...]:
    if not isinstance(value, tuple):
        return _word(value)
    meter.spend(len(value))
    meter.look(*value)
    return tuple(map(_word, value))


def _whole(value: Value) -> int:
    if not isinstance(value, int):
        raise FaultError(f"a whole number is needed, not {kind(value)}")
    return value


def _case(change: Callable[[str], str]) -> Callable[..., Value]:
    return lambda meter, text: text.mapped(change)


def _asks(question: Callable[[str], bool]) -> Callable[..., Value]:
    return lambda meter, text: question(text.text)


def _backwards(meter: Meter, text: Marked, sub: str) -> None:
    """Python looks from the right for each character of `sub` at each place: text times `sub`, at the worst."""
    meter.characters(len(text) * len(sub))


def _strip(left: bool, right: bool) -> Callable[..., Value]:
    def strip(meter: Meter, text: Marked, chars: Value = None) -> Marked:
        if chars is None:
            return text.strip(left=left, right=right)
        several = "".join(set(_word(chars)))
        meter.characters(len(text) * len(several))
        return text.strip(several, left=left, right=right)

    return strip


def _split(from_right: bool) -> Callable[..., Value]:
    def split(meter: Meter, text: Marked, sep: Value = None, maxsplit: Value = -1) -> list[Marked]:
        separator = None if sep is None else _word(sep)
        if from_right and separator is not None:
            _backwards(meter, text, separator)
        meter.spend(2 * (len(text) // 2 if separator is None else text.text.count(separator)))
        return text.split(separator, _whole(maxsplit), from_right=from_right)

    return split


def _partition(from_right: bool) -> Callable[..., Value]:
    def partition(meter: Meter, text: Marked, sep: Value) -> tuple[Marked, Marked, Marked]:
        if from_right:
            _backwards(meter, text, _word(sep))
        parts = text.text.rpartition(_word(sep)) if from_right else text.text.partition(_word(sep))
        a, b = len(parts[0]), len(parts[0]) + len(parts[1])
        return text[:a], text[a:b], text[b:]

    return partition


def _pad(left: Callable[[int, int], int]) -> Callable[..., Value]:
    def pad(meter: Meter, text: Marked, width: Value, fill: Value = None) -> Marked:
        missing = max(0, _whole(width) - len(text))
        meter.characters(missing)
        character = " " if fill is None else _word(fill)
        if len(character) != 1:
            raise FaultError("padding needs one character")
        before = left(missing, _whole(width))
        return _as(text, foreign(character * before) + text + foreign(character * (missing - before)))

    return pad


def replace(meter: Meter, text: Marked, old: Value, new: Value, count: Value = -1) -> Marked:
    """`text.replace(old, new, count)`."""
    if not isinstance(new, Marked):
        raise FaultError(f"text is needed, not {kind(new)}")
    if text.safe:
        new = escaped(new, meter)
    found = text.text.count(_word(old))
    meter.spend(2 * found)
    meter.characters(len(text) + found * len(new))
    return _as(text, text.replace(_word(old), new, _whole(count)))


def _join(meter: Meter, separator: Marked, items: Value) -> Marked:
    pieces = iterate(items, meter)
    meter.spend(len(pieces))
    for piece in pieces:
        _word(piece)
    texts = [piece for piece in pieces if isinstance(piece, Marked)]
    if separator.safe:
        texts = [escaped(text, meter) for text in texts]
    return _as(separator, joined(texts, separator, meter))


def _find(meter: Meter, text: Marked, sub: Value, *bounds: Value) -> int:
    return text.text.find(_word(sub), *map(_whole, bounds))


def _rfind(meter: Meter, text: Marked, sub: Value, *bounds: Value) -> int:
    _backwards(meter, text, _word(sub))
    return text.text.rfind(_word(sub), *map(_whole, bounds))


def _index(meter: Meter, owner: Any, item: Value) -> int:
    if isinstance(owner, Marked):
        return owner.text.index(_word(item))
    for index, element in enumerate(owner):
        if equal(element, item, meter):
            return index
    raise FaultError("index() looks for something that is not in the list")


def _count(meter: Meter, owner: Any, item: Value) -> int:
    if isinstance(owner, Marked):
        return owner.text.count(_word(item))
    return sum(equal(element, item, meter) for element in owner)


def _removeprefix(meter: Meter, text: Marked, prefix: Value) -> Marked:
    return text[len(_word(prefix)) :] if text.text.startswith(_word(prefix)) else text


def _removesuffix(meter: Meter, text: Marked, suffix: Value) -> Marked:
    return text[: len(text) - len(_word(suffix))] if text.text.endswith(_word(suffix)) else text


def _splitlines(meter: Meter, text: Marked, keepends: Value = False) -> list[Marked]:
    lines, at = [], 0
    meter.spend(len(text))
    whole = text.text.splitlines(keepends=True)
    for line, bare in zip(whole, text.text.splitlines(), strict=True):
        lines.append(text[at : at + len(line if keepends else bare)])
        at += len(line)
    return lines


def _listed(make: Callable[[Any], Value]) -> Callable[..., Value]:
    """A method that makes a list or mapping of as many elements as its owner has."""

    def call(meter: Meter, owner: Any) -> Value:
        meter.spend(len(owner))
        return make(owner)

    return call


def _get(meter: Meter, mapping: dict[Value, Value], key: Value, default: Value = None) -> Value:
    return mapping[key] if contains(mapping, key, meter) else default


_TEXT: dict[str, Callable[..., Value]] = {
    **{
        name: _case(getattr(str, name))
        for name in ("upper", "lower", "title", "capitalize", "swapcase", "casefold")
    },
    **{
        name: _asks(getattr(str, name))
        for name in (
            "isdigit",
            "isalpha",
            "isalnum",
            "isspace",
            "islower",
            "isupper",
            "isnumeric",
            "isdecimal",
        )
    },
    "strip": _strip(True, True),
    "lstrip": _strip(True, False),
    "rstrip": _strip(False, True),
    "split": _split(False),
    "rsplit": _split(True),
    "partition": _partition(False),
    "rpartition": _partition(True),
    "center": _pad(lambda missing, width: missing // 2 + (missing & width & 1)),
    "ljust": _pad(lambda missing, width: 0),
    "rjust": _pad(lambda missing, width: missing),
    "startswith": lambda meter, text, prefix: text.text.startswith(_words(meter, prefix)),
    "endswith": lambda meter, text, suffix: text.text.endswith(_words(meter, suffix)),
    "replace": replace,
    "join": _join,
    "find": _find,
    "rfind": _rfind,
    "index": _index,
    "count": _count,
    "removeprefix": _removeprefix,
    "removesuffix": _removesuffix,
    "splitlines": _splitlines,
    "format": _format,
}
_MAPPING: dict[str, Callable[..., Value]] = {
    "get": _get,
    "keys": _listed(list),
    "values": _listed(lambda mapping: list(mapping.values())),
    "items": _listed(lambda mapping: list(mapping.items())),
    "copy": _listed(dict),
}
_SEQUENCE: dict[str, Callable[..., Value]] = {
    "index": _index,
    "count": _count,
    "copy": _listed(lambda items: items[:]),
}
