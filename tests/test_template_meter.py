"""Every filter, test, method and function with large values: each ends soon, or the meter ends it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import product

import pytest

from paceline.runtime.template import filters, methods
from paceline.runtime.template.chat_template import ChatTemplate, _functions
from paceline.runtime.template.marked import foreign, written
from paceline.runtime.template.run import Run
from paceline.runtime.template.scope import Loop
from paceline.runtime.template.tests import _COMPARISONS, _TESTS
from paceline.runtime.template.values import FaultError, Meter, Value

UNITS = 60_000
"""What each expression may do here. A unit is worth a few microseconds, so seconds are far too many."""
SECONDS = 1.5
LONG = "ab" * 2_000_000
LARGE: dict[str, Value] = {
    "text": written(LONG),
    "same": foreign(LONG),
    "late": foreign("a" * 1_000_000 + "b"),
    "early": foreign("ab" + "a" * 500_000),
    "letters": foreign("".join(map(chr, range(0x4E00, 0x9F00))) * 20 + "ab"),
    "digits": foreign("1" * 4_000_000),
    "signs": foreign("%s%%{}{0}" * 400_000),
    "list": [1] * 200_000,
    "tuple": (foreign("b"),) * 200_000,
    "texts": (written(LONG),) * 20_000,
    "mapping": {foreign(str(i)): i for i in range(100_000)},
    "keyed": {foreign(LONG): 1},
}
SHORT = {"one": 1, "letter": foreign("a"), "pattern": foreign("%s {}")}
NAMES = [*LARGE, *SHORT]
METHODS = {
    "text": methods._TEXT,
    "letters": methods._TEXT,
    "early": methods._TEXT,
    "signs": methods._TEXT,
    "letter": methods._TEXT,
    "pattern": methods._TEXT,
    "mapping": methods._MAPPING,
    "keyed": methods._MAPPING,
    "list": methods._SEQUENCE,
    "texts": methods._SEQUENCE,
}
ARGUMENTS = [
    "",
    *NAMES,
    *(
        f"{a}, {b}"
        for a, b in product(("text", "early", "texts", "letter"), ("text", "list", "letter", "one"))
    ),
    "*list",
    "*tuple",
    "*texts",
    "letter, *list",
]


def expressions() -> Iterator[str]:
    for owner, known in METHODS.items():
        yield from (f"{owner}.{name}({args})" for name in known for args in ARGUMENTS)
    for name, value, args in product(filters._FILTERS, NAMES, ARGUMENTS):
        yield f"{value} | {name}({args})"
    inner = ("replace", "center", "default", "join", "in", "equalto", "upper", "float")
    for name, value, other, args in product(("map", "select", "reject"), ("texts", "list"), inner, ARGUMENTS):
        yield f"{value} | {name}('{other}'{', ' * bool(args)}{args}) | list"
    lists = ("texts", "list", "[keyed] * 1000")
    for name, value, path in product(("map", "sort", "sum", "unique", "join", "max"), lists, NAMES):
        yield f"{value} | {name}(attribute={path})"
    for name, value, path in product(("selectattr", "rejectattr"), lists, NAMES):
        yield f"{value} | {name}({path}, 'in', texts)"
    tests = (*_TESTS, *(name for name in _COMPARISONS if name.isalpha()))
    for name, value, args in product(tests, NAMES, ("", *LARGE, "*list", "*texts")):
        yield f"{value} is {name}({args})" if args else f"{value} is {name}"
    operators = ("+", "~", "*", "%", "==", "<", "in", "/", "//", "**", "-")
    yield from (f"{a} {operator} {b}" for operator, a, b in product(operators, NAMES, NAMES))
    yield from (f"{a}[{b}]" for a, b in product(NAMES, NAMES))
    for value in LARGE:
        yield from (f"{value}[{where}]" for where in ("::-1", "1:", ":1", "::2"))
        yield from (f"{{{value}: 1}}", f"[{value}] == [{value}]", f"({value},)")
    functions = ("loop.cycle", "loop.changed", "range", "dict", "namespace", "strftime_now")
    yield from (f"{name}({args})" for name, args in product(functions, ARGUMENTS))


def names(meter: Meter) -> dict[str, Value]:
    return {**LARGE, **SHORT, **_functions(meter, None), "loop": Loop([1, 2])}


def seconds(source: str) -> float:
    body, meter = ChatTemplate(source)._tree.body, Meter(UNITS)
    run, begun = Run(names(meter), meter), time.process_time()
    try:
        run.render(body)
    except (FaultError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError):
        pass
    return time.process_time() - begun


def slow_ones(every: int) -> dict[str, float]:
    """Which of the expressions (each `every`-th) go on for more than a moment, and how long."""
    slow = {}
    for expression in list(expressions())[::every]:
        loop = "{% for i in range(20000) %}{% set ns.y = " + expression + " %}{% endfor %}"
        if (taken := seconds("{% set ns = namespace() %}" + loop)) > SECONDS:
            slow[expression] = taken
    return slow


def test_what_large_values_cost_is_counted() -> None:
    assert not slow_ones(41)


@pytest.mark.slow
def test_what_large_values_cost_is_counted_everywhere() -> None:
    assert not slow_ones(1)


def test_work_that_nobody_counts_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: the same measure with a meter that overlooks large values."""
    source = "{% for i in range(300) %}{% set y = text is lower %}{% endfor %}"
    assert seconds(source) < SECONDS
    monkeypatch.setattr(Meter, "look", lambda *_: None)
    assert seconds(source) > SECONDS
