"""The filters (`x | name`) that a chat template may use."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence

from paceline.runtime.template.marked import Marked, foreign
from paceline.runtime.template.methods import call_method, printf, replace
from paceline.runtime.template.tests import apply_test
from paceline.runtime.template.values import (
    FaultError,
    Meter,
    Undefined,
    Value,
    add,
    bounded,
    contains,
    escaped,
    is_number,
    iterate,
    joined,
    kind,
    order,
    plain,
    text_of,
    truth,
)

_ABSENT = Undefined("nothing")
_TITLE_WORDS = re.compile(r"([-\s({\[<]+)")
_DEEPEST_INDENT = 16
_LONGEST_NUMBER = 400
"""Characters that `int` reads."""
_EMPTY, _COMMON, _KEY = foreign(""), foreign("common"), foreign("key")


def apply_filter(
    name: str, value: Value, args: Sequence[Value], kwargs: Mapping[str, Value], meter: Meter
) -> Value:
    """`value | name(*args, **kwargs)`. Raises FaultError for an unknown filter."""
    known = _FILTERS.get(name)
    if known is None:
        raise FaultError(f"the filter {name!r} is not supported")
    meter.look(value, *args, *kwargs.values())
    return known(meter, value, *args, **kwargs)


def member(value: Value, key: Value, meter: Meter) -> Value:
    """The element or key `key` of `value`, Undefined where there is none."""
    if isinstance(value, dict) and contains(value, key, meter):
        return value[key]
    if isinstance(value, (list, tuple, Marked)) and isinstance(key, int):
        inside = -len(value) <= key < len(value)
        if isinstance(value, Marked):
            at = key % len(value) if inside else 0
            return value[at : at + 1] if inside else Undefined(str(key))
        return value[key] if inside else Undefined(str(key))
    if isinstance(value, Undefined):
        raise FaultError(f"{value.name!r} is undefined")
    return Undefined(key.text if isinstance(key, Marked) else str(key) if is_number(key) else kind(key))


def tojson(
    meter: Meter,
    value: Value,
    indent: Value = None,
    ensure_ascii: Value = False,
    separators: Value = None,
    sort_keys: Value = False,
) -> Marked:
    """JSON as chat templates expect it: letters and markup stay. The result is foreign text."""
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= _DEEPEST_INDENT):
        raise FaultError(f"tojson takes an indent from 0 to {_DEEPEST_INDENT}")
    content = plain(value, meter)
    pair = None if separators is None else tuple(text_of(s, meter).text for s in iterate(separators, meter))
    if pair is not None and (len(pair) != 2 or max(map(len, pair)) > _DEEPEST_INDENT):
        raise FaultError("tojson takes two short separators")
    text = json.dumps(
        content,
        ensure_ascii=truth(ensure_ascii),
        indent=indent,
        separators=None if pair is None else (pair[0], pair[1]),
        sort_keys=truth(sort_keys),
    )
    meter.characters(len(text))
    return foreign(text)


def _attributes(items: Sequence[Value], path: Value, meter: Meter) -> Sequence[Value]:
    """`attribute="a.b"` of each item, for map, sort and the like; the items themselves where the path is None."""
    if path is None:
        return items
    keys: list[Value] = [path]
    if isinstance(path, Marked):
        meter.spend(len(path))
        keys = [int(part.text) if part.text.isdecimal() else part for part in path.split(".")]
    found = []
    for value in items:
        for key in keys:
            meter.spend()
            value = member(value, key, meter)
        found.append(value)
    return found


def _default(meter: Meter, value: Value, default: Value = _EMPTY, boolean: Value = False) -> Value:
    absent = isinstance(value, Undefined) or (truth(boolean) and not truth(value))
    return default if absent else value


def _length(meter: Meter, value: Value) -> int:
    if isinstance(value, (Marked, list, tuple, dict)):
        return len(value)
    return len(iterate(value, meter))


def _first(meter: Meter, value: Value) -> Value:
    items = iterate(value, meter)
    return items[0] if items else Undefined("the first of nothing")


def _last(meter: Meter, value: Value) -> Value:
    items = iterate(value, meter)
    return items[-1] if items else Undefined("the last of nothing")


def _list(meter: Meter, value: Value) -> list[Value]:
    items = iterate(value, meter)
    meter.spend(len(items))
    return list(items)


def _reverse(meter: Meter, value: Value) -> Value:
    if isinstance(value, Marked):
        meter.characters(len(value))
        return value[::-1]
    return _list(meter, value)[::-1]


def _join(meter: Meter, value: Value, d: Value = _EMPTY, attribute: Value = None) -> Marked:
    items = iterate(value, meter)
    meter.spend(len(items))
    return joined(
        [text_of(item, meter) for item in _attributes(items, attribute, meter)], text_of(d, meter), meter
    )


def _title(meter: Meter, value: Value) -> Marked:
    def titled(text: str) -> str:
        return "".join(word[:1].upper() + word[1:].lower() for word in _TITLE_WORDS.split(text))

    text = text_of(value, meter)
    meter.spend(len(text))
    return text.mapped(titled)


def _method(name: str) -> Callable[..., Value]:
    def call(meter: Meter, value: Value, *args: Value) -> Value:
        return call_method(text_of(value, meter), name, args, {}, meter)

    return call


def _replace(meter: Meter, value: Value, old: Value, new: Value, count: Value = None) -> Marked:
    text = text_of(value, meter)
    plain_text = Marked(text.text, text.own)
    return replace(
        meter, plain_text, text_of(old, meter), text_of(new, meter), -1 if count is None else count
    )


def _escape(meter: Meter, value: Value) -> Marked:
    return escaped(text_of(value, meter), meter)


def _indent(
    meter: Meter, value: Value, width: Value = 4, first: Value = False, blank: Value = False
) -> Marked:
    text = text_of(value, meter)
    if isinstance(width, int):
        meter.characters(width)
    margin = width if isinstance(width, Marked) else foreign(" " * int(bounded(width)))
    meter.spend(2 * text.text.count("\n"))
    lines = text.split("\n")
    meter.characters(len(text) + len(lines) * (len(margin) + 1))
    start = 0 if truth(first) else 1
    filled = [
        margin + line if number >= start and (line.text or truth(blank) or number == 0) else line
        for number, line in enumerate(lines)
    ]
    whole = joined(filled, foreign("\n"), meter)
    return whole.markup() if text.safe else whole


def _int(meter: Meter, value: Value, default: Value = 0, base: Value = 10) -> Value:
    source = value.text.strip() if isinstance(value, Marked) else value
    if isinstance(source, str) and len(source) > _LONGEST_NUMBER:
        if source.isdecimal():
            raise FaultError("a number grows too large")
        return default
    try:
        if isinstance(source, str) and isinstance(base, int) and base != 10:
            return bounded(int(source, base))
        return bounded(int(source)) if isinstance(source, (str, int, float)) else default
    except (ValueError, OverflowError):
        number = _float(meter, value, None)
        return int(number) if isinstance(number, float) and abs(number) < 1e70 else default


def _float(meter: Meter, value: Value, default: Value = 0.0) -> Value:
    source = value.text if isinstance(value, Marked) else value
    try:
        return float(source) if isinstance(source, (str, int, float)) else default
    except (ValueError, OverflowError):
        return default


def _round(meter: Meter, value: Value, precision: Value = 0, method: Value = _COMMON) -> Value:
    if not isinstance(value, (int, float)) or not isinstance(precision, int) or abs(precision) > 30:
        raise FaultError("round needs a number and at most 30 places")
    if not (isinstance(method, Marked) and method.text == "common"):
        raise FaultError("round supports only the method 'common'")
    return round(value, precision)


def _sum(meter: Meter, value: Value, attribute: Value = None, start: Value = 0) -> Value:
    for item in _attributes(iterate(value, meter), attribute, meter):
        meter.spend()
        start = add(start, item, meter)
    return start


def _sorted(
    meter: Meter, items: Sequence[Value], keys: Sequence[Value], cased: bool, reverse: bool
) -> list[Value]:
    """Items in the order of their keys; letters compare without case unless `cased`."""
    meter.spend(len(items) * max(1, len(items).bit_length()))

    def before(left: tuple[Value, Value], right: tuple[Value, Value]) -> int:
        meter.spend()
        return order(left[0], right[0], meter, cased=cased)

    pairs = sorted(zip(keys, items, strict=True), key=functools.cmp_to_key(before), reverse=reverse)
    return [item for _, item in pairs]


def _sort(
    meter: Meter, value: Value, reverse: Value = False, case_sensitive: Value = False, attribute: Value = None
) -> list[Value]:
    items = _list(meter, value)
    return _sorted(meter, items, _attributes(items, attribute, meter), truth(case_sensitive), truth(reverse))


def _dictsort(
    meter: Meter,
    value: Value,
    case_sensitive: Value = False,
    by: Value = _KEY,
    reverse: Value = False,
) -> list[Value]:
    pairs = _items(meter, value)
    which = 1 if isinstance(by, Marked) and by.text == "value" else 0
    keys = [pair[which] for pair in pairs]
    return _sorted(meter, list(pairs), keys, truth(case_sensitive), truth(reverse))


def _extreme(reverse: bool) -> Callable[..., Value]:
    def extreme(meter: Meter, value: Value, case_sensitive: Value = False, attribute: Value = None) -> Value:
        return _first(meter, _sort(meter, value, reverse, case_sensitive, attribute))

    return extreme


def _items(meter: Meter, value: Value) -> list[tuple[Value, Value]]:
    if isinstance(value, Undefined):
        return []
    if not isinstance(value, dict):
        raise FaultError(f"{kind(value)} has no items")
    meter.spend(len(value))
    return list(value.items())


def _unique(
    meter: Meter, value: Value, case_sensitive: Value = False, attribute: Value = None
) -> list[Value]:
    kept: list[Value] = []
    seen: list[Value] = []
    items = iterate(value, meter)
    for item, key in zip(items, _attributes(items, attribute, meter), strict=True):
        meter.look(key)
        if isinstance(key, Marked) and not truth(case_sensitive):
            key = key.mapped(str.lower)
        if not contains(seen, key, meter):
            seen.append(key)
            kept.append(item)
    return kept


def _map(
    meter: Meter, value: Value, *args: Value, attribute: Value = None, default: Value = _ABSENT
) -> list[Value]:
    items = iterate(value, meter) if truth(value) else ()
    meter.spend(len(items))
    if attribute is None:
        name, *rest = args
        return [apply_filter(text_of(name, meter).text, item, rest, {}, meter) for item in items]
    found = _attributes(items, attribute, meter)
    if default is _ABSENT:
        return list(found)
    return [default if isinstance(item, Undefined) else item for item in found]


def _choose(keep: bool, by_attribute: bool) -> Callable[..., Value]:
    def choose(meter: Meter, value: Value, *args: Value) -> list[Value]:
        rest, chosen = list(args), []
        attribute = rest.pop(0) if by_attribute else None
        name = text_of(rest.pop(0), meter).text if rest else None
        items = iterate(value, meter) if truth(value) else ()
        for item, tested in zip(items, _attributes(items, attribute, meter), strict=True):
            meter.spend()
            if (truth(tested) if name is None else apply_test(name, tested, rest, meter)) == keep:
                chosen.append(item)
        return chosen

    return choose


def _format(meter: Meter, value: Value, *args: Value, **kwargs: Value) -> Marked:
    if kwargs:
        raise FaultError("the filter 'format' supports only values by position")
    return printf(text_of(value, meter), tuple(args), meter)


def _wordcount(meter: Meter, value: Value) -> int:
    return sum(1 for _ in re.finditer(r"\w+", text_of(value, meter).text))


def _abs(meter: Meter, value: Value) -> Value:
    if not isinstance(value, (int, float)):
        raise FaultError(f"abs needs a number, not {kind(value)}")
    return abs(value)


_FILTERS: dict[str, Callable[..., Value]] = {
    **{name: _method(name) for name in ("upper", "lower", "capitalize", "center")},
    **dict.fromkeys(("default", "d"), _default),
    **dict.fromkeys(("length", "count"), _length),
    **dict.fromkeys(("escape", "e"), _escape),
    "string": lambda meter, value: text_of(value, meter),
    "safe": lambda meter, value: text_of(value, meter).markup(),
    "trim": _method("strip"),
    "title": _title,
    "abs": _abs,
    "dictsort": _dictsort,
    "first": _first,
    "float": _float,
    "format": _format,
    "indent": _indent,
    "int": _int,
    "items": _items,
    "join": _join,
    "last": _last,
    "list": _list,
    "map": _map,
    "max": _extreme(True),
    "min": _extreme(False),
    "reject": _choose(False, False),
    "rejectattr": _choose(False, True),
    "replace": _replace,
    "reverse": _reverse,
    "round": _round,
    "select": _choose(True, False),
    "selectattr": _choose(True, True),
    "sort": _sort,
    "sum": _sum,
    "tojson": tojson,
    "unique": _unique,
    "wordcount": _wordcount,
}
