"""What the values of a chat template are and what operators do with them, each bounded by a work meter.

Strings are `Marked`; the rest are None, bool, int, float, list, tuple, dict and the classes below. Nothing
else ever reaches a template, so there is no Python object to escape through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from paceline.runtime.template.marked import Marked, foreign, join, written

Value: TypeAlias = object

CHARACTERS_PER_UNIT = 16
_INT_BITS = 256
_KEY_BITS = 60
"""Larger whole numbers may share a hash, and a mapping of many that do takes time by the square."""


class FaultError(Exception):
    """The template did something wrong or something that is not allowed; the message says what."""


class LimitError(FaultError):
    """The meter is used up."""


class Meter:
    """Work a template may still do. One unit is one step of the evaluator or 16 characters made."""

    def __init__(self, units: int) -> None:
        self._left = units

    def spend(self, units: int = 1) -> None:
        """Take `units` before the work is done. Raises LimitError when they are used up."""
        self._left -= units
        if self._left < 0:
            raise LimitError("it does far more work than a chat needs")

    def characters(self, count: int) -> None:
        """Take what making `count` characters costs."""
        self.spend(max(0, count) // CHARACTERS_PER_UNIT + 1)

    def look(self, *values: object) -> None:
        """Take what going once over each value costs: its characters or elements, whatever they hold."""
        for value in values:
            if isinstance(value, (Marked, list, tuple, dict)):
                self.spend(len(value) // CHARACTERS_PER_UNIT)


@dataclass(frozen=True, slots=True)
class Undefined:
    """The value of a name or key that does not exist: empty when printed or looped over, else an error."""

    name: str


@dataclass(frozen=True, slots=True)
class Namespace:
    """What `namespace()` makes: attributes that may be set from inner scopes."""

    values: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Blocks:
    """What `self` is: the blocks of the template, of which there are none."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a value, not yet called."""

    owner: Value
    name: str


@dataclass(frozen=True, slots=True)
class Builtin:
    """A function that the evaluator offers: (positional, named) -> value."""

    call: Callable[[Sequence[Value], dict[str, Value]], Value]


def kind(value: Value) -> str:
    """The word for a value in an error message."""
    if isinstance(value, Undefined):
        return f"{value.name!r}, which is undefined"
    names = {
        Marked: "text",
        type(None): "none",
        bool: "a truth value",
        int: "a whole number",
        float: "a number",
        dict: "a mapping",
        Builtin: "a function",
    }
    return names.get(type(value), f"a {type(value).__name__.lower()}")


def is_number(value: Value) -> bool:
    """Whether arithmetic works on it; truth values count as 0 and 1."""
    return isinstance(value, (int, float))


def truth(value: Value) -> bool:
    """What `if` sees."""
    return not isinstance(value, Undefined) and bool(value)


def iterate(value: Value, meter: Meter) -> Sequence[Value]:
    """The elements of a list, tuple, mapping (its keys), text (its characters) or undefined (none)."""
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, dict):
        meter.spend(len(value))
        return list(value)
    if isinstance(value, Marked):
        meter.spend(4 * len(value))
        return list(value)
    if isinstance(value, Undefined):
        return ()
    raise FaultError(f"{kind(value)} cannot be looped over")


def text_of(value: Value, meter: Meter) -> Marked:
    """The value as it is printed; only text keeps its marks."""
    if isinstance(value, Marked):
        meter.characters(len(value))
        return value
    if isinstance(value, Undefined):
        return written("")
    text = repr(plain(value, meter)) if isinstance(value, (list, tuple, dict)) else str(plain(value, meter))
    meter.characters(len(text))
    return foreign(text)


def plain(value: Value, meter: Meter, depth: int = 0) -> object:
    """The value in Python's own types, for `repr` and JSON. Depth and size are charged for."""
    meter.spend(1 + depth)
    if isinstance(value, Marked):
        meter.characters(len(value))
        return value.text
    if isinstance(value, dict):
        return {plain(k, meter, depth): plain(v, meter, depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v, meter, depth + 1) for v in value]
    if isinstance(value, tuple):
        return tuple(plain(v, meter, depth + 1) for v in value)
    if value is None or is_number(value):
        return value
    if isinstance(value, Undefined):
        return _NOTHING
    raise FaultError(f"{kind(value)} cannot be written out")


class _Nothing:
    """What an undefined value looks like in a list that is printed."""

    def __repr__(self) -> str:
        return "Undefined"


_NOTHING = _Nothing()


def equal(left: Value, right: Value, meter: Meter) -> bool:
    """`==`; containers are compared element by element, each charged for."""
    meter.spend()
    if isinstance(left, Marked) and isinstance(right, Marked):
        meter.characters(min(len(left), len(right)))
        return left == right
    if isinstance(left, (list, tuple)) and type(left) is type(right):
        assert isinstance(right, (list, tuple))
        return len(left) == len(right) and all(equal(a, b, meter) for a, b in zip(left, right, strict=True))
    if isinstance(left, dict) and isinstance(right, dict):
        meter.spend(len(left))
        meter.look(*left)
        return left.keys() == right.keys() and all(equal(left[k], right[k], meter) for k in left)
    if isinstance(left, Undefined) and isinstance(right, Undefined):
        return True
    return left == right if _is_scalar(left) and _is_scalar(right) else left is right


def contains(container: Value, item: Value, meter: Meter) -> bool:
    """`item in container`."""
    if isinstance(container, Marked):
        if not isinstance(item, Marked):
            raise FaultError(f"{kind(item)} cannot be looked for in text")
        meter.characters(len(container))
        return item.text in container.text
    if isinstance(container, dict):
        meter.look(item)
        return _is_scalar(item) and item in container
    return any(equal(item, element, meter) for element in iterate(container, meter))


def compare(operator: str, left: Value, right: Value, meter: Meter) -> bool:
    """eq, ne, lt, lteq, gt, gteq, in, notin."""
    if operator in ("eq", "ne"):
        return equal(left, right, meter) == (operator == "eq")
    if operator in ("in", "notin"):
        return contains(right, left, meter) == (operator == "in")
    sign = order(left, right, meter)
    return {"lt": sign < 0, "lteq": sign <= 0, "gt": sign > 0, "gteq": sign >= 0}[operator]


def order(left: Value, right: Value, meter: Meter, *, cased: bool = True) -> int:
    """-1, 0 or 1 as the left of two numbers or two texts is smaller, equal or greater."""
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return (left > right) - (left < right)
    if isinstance(left, Marked) and isinstance(right, Marked):
        meter.characters(len(left) + len(right))
        a, b = (left.text, right.text) if cased else (left.text.lower(), right.text.lower())
        return (a > b) - (a < b)
    raise FaultError(f"{kind(left)} and {kind(right)} have no order")


def key(value: Value) -> Value:
    """The value itself, where it may be the key of a mapping. Raises FaultError where it may not."""
    if not _is_scalar(value):
        raise FaultError(f"{kind(value)} cannot be a key")
    if isinstance(value, int) and value.bit_length() > _KEY_BITS:
        raise FaultError(f"a key has more than {_KEY_BITS} bits")
    return value


def add(left: Value, right: Value, meter: Meter) -> Value:
    """`+` of two texts, two lists, two tuples or two numbers."""
    if isinstance(left, Marked) and isinstance(right, Marked):
        meter.characters(len(left) + len(right))
        if left.safe != right.safe:
            left, right = escaped(left, meter), escaped(right, meter)
            return (left + right).markup()
        return (left + right).markup() if left.safe else left + right
    if isinstance(left, list) and isinstance(right, list):
        meter.spend(len(left) + len(right))
        return [*left, *right]
    if isinstance(left, tuple) and isinstance(right, tuple):
        meter.spend(len(left) + len(right))
        return (*left, *right)
    return arithmetic("+", left, right)


def escaped(text: Marked, meter: Meter) -> Marked:
    """The text as markup, escaped where it was plain: up to five characters for each."""
    meter.characters(5 * len(text))
    return text.escaped()


def multiply(left: Value, right: Value, meter: Meter) -> Value:
    """`*` of two numbers, or of a text, list or tuple and a whole number."""
    if isinstance(left, int) and isinstance(right, (Marked, list, tuple)):
        left, right = right, left
    if isinstance(right, int) and isinstance(left, (Marked, list, tuple)):
        times = max(0, right)
        (meter.characters if isinstance(left, Marked) else meter.spend)(len(left) * times)
        return left * times
    return arithmetic("*", left, right)


def arithmetic(operator: str, left: Value, right: Value) -> int | float:
    """+ - * / // % ** of two numbers; whole numbers stay below 2 to the 256."""
    if not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
        raise FaultError(f"{operator} does not work on {kind(left)} and {kind(right)}")
    if (
        operator == "**"
        and isinstance(left, int)
        and isinstance(right, int)
        and right > _INT_BITS
        and abs(left) > 1
    ):
        raise FaultError("a number grows too large")
    table: dict[str, Callable[[], object]] = {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "/": lambda: left / right,
        "//": lambda: left // right,
        "%": lambda: left % right,
        "**": lambda: left**right,
    }
    return bounded(table[operator]())


def bounded(number: object) -> int | float:
    """The number itself. Raises FaultError for a whole number beyond 256 bits and for complex ones."""
    if isinstance(number, int) and number.bit_length() > _INT_BITS:
        raise FaultError("a number grows too large")
    if not isinstance(number, (int, float)):
        raise FaultError("a power has no real value")
    return number


def cut(value: Value, where: slice, meter: Meter) -> Value:
    """`value[start:stop:step]`."""
    if isinstance(value, Marked):
        meter.characters(len(value))
        return value[where]
    if isinstance(value, (list, tuple)):
        meter.spend(len(value))
        return value[where]
    return value if isinstance(value, Undefined) else Undefined("a slice")


def joined(pieces: Sequence[Marked], separator: Marked, meter: Meter) -> Marked:
    """`separator.join(pieces)`."""
    meter.characters(sum(map(len, pieces)) + len(pieces) * len(separator))
    return join(pieces, separator)


def _is_scalar(value: Value) -> bool:
    return value is None or isinstance(value, (int, float, Marked))
