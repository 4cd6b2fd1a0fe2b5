"""The tests (`x is name`) that a chat template may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paceline.runtime.template.marked import Marked
from paceline.runtime.template.values import (
    Builtin,
    FaultError,
    Meter,
    Method,
    Undefined,
    Value,
    compare,
    is_number,
    kind,
)


def apply_test(name: str, value: Value, args: Sequence[Value], meter: Meter) -> bool:
    """`value is name(*args)`. Raises FaultError for an unknown test."""
    meter.look(*args)
    if name in _COMPARISONS:
        (other,) = args
        return compare(_COMPARISONS[name], value, other, meter)
    known = _TESTS.get(name)
    if known is None:
        raise FaultError(f"the test {name!r} is not supported")
    if name in ("lower", "upper"):
        meter.look(value)
    return known(value, *args)


def _whole(value: Value) -> int:
    if not isinstance(value, int):
        raise FaultError(f"a whole number is needed, not {kind(value)}")
    return value


def _sameas(value: Value, other: Value) -> bool:
    return value is other or (is_number(value) and type(value) is type(other) and value == other)


_COMPARISONS = {
    **dict.fromkeys(("eq", "equalto", "=="), "eq"),
    **dict.fromkeys(("ne", "!="), "ne"),
    **dict.fromkeys(("lt", "lessthan", "<"), "lt"),
    **dict.fromkeys(("le", "<="), "lteq"),
    **dict.fromkeys(("gt", "greaterthan", ">"), "gt"),
    **dict.fromkeys(("ge", ">="), "gteq"),
    "in": "in",
}


_TESTS: dict[str, Callable[..., bool]] = {
    "boolean": lambda value: isinstance(value, bool),
    "callable": lambda value: isinstance(value, (Builtin, Method, Undefined)),
    "defined": lambda value: not isinstance(value, Undefined),
    "divisibleby": lambda value, other: _whole(value) % _whole(other) == 0,
    "even": lambda value: _whole(value) % 2 == 0,
    "false": lambda value: value is False,
    "float": lambda value: isinstance(value, float),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "iterable": lambda value: isinstance(value, (Marked, list, tuple, dict, Undefined)),
    "lower": lambda value: isinstance(value, Marked) and value.text.islower(),
    "mapping": lambda value: isinstance(value, dict),
    "none": lambda value: value is None,
    "number": is_number,
    "odd": lambda value: _whole(value) % 2 == 1,
    "sameas": _sameas,
    "sequence": lambda value: isinstance(value, (Marked, list, tuple, dict, Undefined)),
    "string": lambda value: isinstance(value, Marked),
    "true": lambda value: value is True,
    "undefined": lambda value: isinstance(value, Undefined),
    "upper": lambda value: isinstance(value, Marked) and value.text.isupper(),
}
