"""Names and loops while a chat template runs: where a name is found, what `loop` knows, what a macro closes
over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline.runtime.template.values import FaultError, Meter, Method, Undefined, Value, equal


@dataclass(slots=True)
class Scope:
    """Names set here, and the scope around; inner scopes never change outer ones."""

    names: dict[str, Value]
    parent: Scope | None = None

    def find(self, name: str) -> Value:
        """The nearest value of that name, or Undefined."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return Undefined(name)


@dataclass(frozen=True, slots=True)
class Macro:
    """A macro or the body of a call block: its node, and the scope it was made in."""

    node: Any
    scope: Scope


_COUNTS: dict[str, Callable[[int, int], Value]] = {
    "index": lambda index, count: index + 1,
    "index0": lambda index, count: index,
    "revindex": lambda index, count: count - index,
    "revindex0": lambda index, count: count - index - 1,
    "length": lambda index, count: count,
    "first": lambda index, count: index == 0,
    "last": lambda index, count: index == count - 1,
    "depth": lambda index, count: 1,
    "depth0": lambda index, count: 0,
}


@dataclass(slots=True)
class Loop:
    """What the name `loop` stands for inside a for loop."""

    items: Sequence[Value]
    index: int = 0
    changed: list[Value] = field(default_factory=list)

    def get(self, name: str) -> Value:
        """`loop.name`."""
        index, count = self.index, len(self.items)
        if known := _COUNTS.get(name):
            return known(index, count)
        if name == "previtem":
            return self.items[index - 1] if index else Undefined("loop.previtem")
        if name == "nextitem":
            return self.items[index + 1] if index + 1 < count else Undefined("loop.nextitem")
        return Method(self, name) if name in ("cycle", "changed") else Undefined(f"loop.{name}")

    def call(self, name: str, args: Sequence[Value], meter: Meter) -> Value:
        """`loop.cycle(...)` and `loop.changed(...)`."""
        if name == "cycle":
            if not args:
                raise FaultError("loop.cycle() needs values")
            return args[self.index % len(args)]
        same = bool(self.changed) and equal(self.changed, list(args), meter)
        self.changed = list(args)
        return not same
