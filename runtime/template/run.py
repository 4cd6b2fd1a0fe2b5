"""Runs a parsed chat template: statements, scopes, macros and expressions, step by metered step.

The nodes are jinja2's, the meaning is jinja2's, but no Python code is made from them: a template from an
untrusted bundle has nothing to escape into, and every step, loop and character it makes is paid for out of
one meter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from paceline.runtime.template.filters import apply_filter, member
from paceline.runtime.template.marked import EMPTY, Marked, foreign
from paceline.runtime.template.methods import call_method, methods_of, printf
from paceline.runtime.template.scope import Loop, Macro, Scope
from paceline.runtime.template.tests import apply_test
from paceline.runtime.template.values import (
    Blocks,
    Builtin,
    FaultError,
    Meter,
    Method,
    Namespace,
    Undefined,
    Value,
    add,
    arithmetic,
    compare,
    cut,
    iterate,
    joined,
    key,
    multiply,
    text_of,
    truth,
)

Signal = Literal["break", "continue"] | None
_DEEPEST_CALLS = 30
_key = functools.lru_cache(maxsize=1024)(foreign)


class Run:
    """One rendering. `names` are the variables and functions that the template sees."""

    def __init__(self, names: Mapping[str, Value], meter: Meter) -> None:
        self.line = 1
        """Where in the template the run is, for error messages."""
        self._meter = meter
        self._scope = Scope(dict(names))
        self._out: list[Marked] = []
        self._calls = 0

    def render(self, body: Sequence[Any]) -> Marked:
        """The text of these statements. Raises FaultError."""
        self._body(body)
        return joined(self._out, EMPTY, self._meter)

    # Statements

    def _body(self, body: Sequence[Any]) -> Signal:
        for node in body:
            self._meter.spend()
            self.line = node.lineno or self.line
            statement = self._STATEMENTS.get(type(node).__name__)
            if statement is None:
                raise FaultError(
                    f"it uses the statement {type(node).__name__.lower()!r}, which chat templates may not use"
                )
            if signal := statement(self, node):
                return signal
        return None

    def _captured(self, body: Sequence[Any], names: dict[str, Value] | None = None) -> Marked:
        """The text of `body`, run in an inner scope."""
        outer, self._out = self._out, []
        try:
            self._inner(body, names)
            return joined(self._out, EMPTY, self._meter)
        finally:
            self._out = outer

    def _inner(self, body: Sequence[Any], names: dict[str, Value] | None = None) -> Signal:
        outer = self._scope
        self._scope = Scope(names or {}, outer)
        try:
            return self._body(body)
        finally:
            self._scope = outer

    def _output(self, node: Any) -> Signal:
        for part in node.nodes:
            self._out.append(text_of(self._value(part), self._meter))
        return None

    def _if(self, node: Any) -> Signal:
        for branch in (node, *node.elif_):
            if truth(self._value(branch.test)):
                return self._body(branch.body)
        return self._body(node.else_)

    def _for(self, node: Any) -> Signal:
        if node.recursive:
            raise FaultError("recursive loops are not supported")
        items = iterate(self._value(node.iter), self._meter)
        if node.test is not None:
            items = [item for item in items if self._passes(node, item)]
        if not items:
            return self._inner(node.else_)
        loop, outer, ended = Loop(items), self._scope, False
        try:
            for loop.index, item in enumerate(items):
                self._meter.spend()
                self._scope = Scope({}, outer)
                self._assign(node.target, item)
                self._scope.names["loop"] = loop
                signal = self._body(node.body)
                ended = ended or signal is None
                if signal == "break":
                    break
        finally:
            self._scope = outer
        # As in jinja2, whose else runs unless a pass came to its end.
        return None if ended else self._inner(node.else_)

    def _passes(self, node: Any, item: Value) -> bool:
        outer = self._scope
        self._scope = Scope({}, outer)
        try:
            self._assign(node.target, item)
            return truth(self._value(node.test))
        finally:
            self._scope = outer

    def _assign(self, target: Any, value: Value) -> None:
        what = type(target).__name__
        if what == "Name":
            self._scope.names[target.name] = value
        elif what == "NSRef":
            space = self._scope.find(target.name)
            if not isinstance(space, Namespace):
                raise FaultError(f"{target.name}.{target.attr} cannot be set: {target.name} is no namespace")
            space.values[target.attr] = value
        else:
            values = iterate(value, self._meter)
            self._meter.spend(len(target.items))
            if len(values) != len(target.items):
                raise FaultError(f"{len(values)} values cannot fill {len(target.items)} names")
            for part, item in zip(target.items, values, strict=True):
                self._assign(part, item)

    def _set(self, node: Any) -> Signal:
        self._assign(node.target, self._value(node.node))
        return None

    def _set_block(self, node: Any) -> Signal:
        text: Value = self._captured(node.body)
        self._assign(node.target, text if node.filter is None else self._filter(node.filter, text))
        return None

    def _filter_block(self, node: Any) -> Signal:
        self._out.append(text_of(self._filter(node.filter, self._captured(node.body)), self._meter))
        return None

    def _with(self, node: Any) -> Signal:
        names = [
            (target, self._value(value)) for target, value in zip(node.targets, node.values, strict=True)
        ]
        outer = self._scope
        self._scope = Scope({}, outer)
        try:
            for target, value in names:
                self._assign(target, value)
            return self._body(node.body)
        finally:
            self._scope = outer

    def _macro(self, node: Any) -> Signal:
        self._scope.names[node.name] = Macro(node, self._scope)
        return None

    def _call_block(self, node: Any) -> Signal:
        caller = Macro(node, self._scope)
        self._out.append(text_of(self._call(node.call, {"caller": caller}), self._meter))
        return None

    # Expressions

    def _value(self, node: Any) -> Value:
        self._meter.spend()
        self.line = node.lineno or self.line
        expression = self._EXPRESSIONS.get(type(node).__name__)
        if expression is None:
            raise FaultError(
                f"it uses the expression {type(node).__name__.lower()!r}, which is not supported"
            )
        return expression(self, node)

    def _compare(self, node: Any) -> Value:
        left = self._value(node.expr)
        for operand in node.ops:
            right = self._value(operand.expr)
            if not compare(operand.op, left, right, self._meter):
                return False
            left = right
        return True

    def _mapping(self, node: Any) -> Value:
        return {key(self._value(pair.key)): self._value(pair.value) for pair in node.items}

    def _getattr(self, node: Any) -> Value:
        owner = self._value(node.node)
        if node.attr in methods_of(owner):
            return Method(owner, node.attr)
        return self._member(owner, node.attr, _key(node.attr))

    def _getitem(self, node: Any) -> Value:
        owner = self._value(node.node)
        if type(node.arg).__name__ == "Slice":
            bounds = [
                None if part is None else self._value(part)
                for part in (node.arg.start, node.arg.stop, node.arg.step)
            ]
            return cut(owner, slice(*bounds), self._meter)
        place = self._value(node.arg)
        name = place.text if isinstance(place, Marked) else ""
        self._meter.look(place)
        found = self._member(owner, name, place)
        return Method(owner, name) if isinstance(found, Undefined) and name in methods_of(owner) else found

    def _member(self, owner: Value, name: str, place: Value) -> Value:
        if isinstance(owner, Namespace):
            return owner.values.get(name, Undefined(name))
        if isinstance(owner, Loop):
            return owner.get(name)
        if isinstance(owner, Blocks):
            return Undefined(name)
        return member(owner, place, self._meter)

    def _filter(self, node: Any, value: Value = None) -> Value:
        if type(node.node).__name__ == "Filter":  # a chain of them may start with the text of a block
            value = self._filter(node.node, value)
        elif node.node is not None:
            value = self._value(node.node)
        args, kwargs = self._arguments(node)
        return apply_filter(node.name, value, args, kwargs, self._meter)

    def _test(self, node: Any) -> Value:
        value = self._value(node.node)
        args, kwargs = self._arguments(node)
        if kwargs:
            raise FaultError(f"the test {node.name!r} takes no named values")
        return apply_test(node.name, value, args, self._meter)

    def _arguments(self, node: Any) -> tuple[list[Value], dict[str, Value]]:
        args = [self._value(arg) for arg in node.args]
        kwargs = {pair.key: self._value(pair.value) for pair in node.kwargs}
        if node.dyn_args is not None:
            unpacked = iterate(self._value(node.dyn_args), self._meter)
            self._meter.spend(len(unpacked))
            args += unpacked
        if node.dyn_kwargs is not None:
            raise FaultError("** in a call is not supported")
        return args, kwargs

    def _call(self, node: Any, extra: Mapping[str, Value] | None = None) -> Value:
        function = self._value(node.node)
        args, kwargs = self._arguments(node)
        kwargs |= extra or {}
        if isinstance(function, Macro):
            return self._call_macro(function, args, kwargs)
        if isinstance(function, Builtin):
            self._meter.look(*args, *kwargs.values())
            return function.call(args, kwargs)
        if isinstance(function, Method) and isinstance(function.owner, Loop):
            return function.owner.call(function.name, args, self._meter)
        if isinstance(function, Method):
            return call_method(function.owner, function.name, args, kwargs, self._meter)
        name = getattr(node.node, "attr", None) or getattr(node.node, "name", "")
        raise FaultError(f"{name}() is not available")

    def _call_macro(self, macro: Macro, args: Sequence[Value], kwargs: dict[str, Value]) -> Value:
        parameters = [parameter.name for parameter in macro.node.args]
        allowed = {*parameters, "caller"}
        self._meter.spend(len(parameters))
        names = dict(zip(parameters, args, strict=False))
        for name, value in kwargs.items():
            if name not in allowed or name in names:
                raise FaultError(f"a macro is given {name!r}, which it does not take")
            names[name] = value
        if len(args) > len(parameters):
            raise FaultError(f"a macro takes {len(parameters)} values, not {len(args)}")
        self._calls += 1
        if self._calls > _DEEPEST_CALLS:
            raise FaultError("its macros call each other without end")
        outer, line, self._scope = self._scope, self.line, Scope(names, macro.scope)
        try:
            defaults = [None] * (len(parameters) - len(macro.node.defaults)) + macro.node.defaults
            for parameter, default in zip(parameters, defaults, strict=True):
                if parameter not in names:
                    names[parameter] = Undefined(parameter) if default is None else self._value(default)
            return self._captured(macro.node.body)
        finally:
            self._scope, self.line = outer, line
            self._calls -= 1

    def _modulo(self, node: Any) -> Value:
        left, right = self._value(node.left), self._value(node.right)
        return printf(left, right, self._meter) if isinstance(left, Marked) else arithmetic("%", left, right)

    def _choice(self, node: Any) -> Value:
        if truth(self._value(node.test)):
            return self._value(node.expr1)
        return Undefined("an if without else") if node.expr2 is None else self._value(node.expr2)

    def _and(self, node: Any) -> Value:
        left = self._value(node.left)
        return self._value(node.right) if truth(left) else left

    def _or(self, node: Any) -> Value:
        left = self._value(node.left)
        return left if truth(left) else self._value(node.right)

    def _concat(self, node: Any) -> Value:
        return joined([text_of(self._value(part), self._meter) for part in node.nodes], EMPTY, self._meter)

    _STATEMENTS: ClassVar[Mapping[str, Callable[[Run, Any], Signal]]] = {
        "Output": _output,
        "If": _if,
        "For": _for,
        "Assign": _set,
        "AssignBlock": _set_block,
        "FilterBlock": _filter_block,
        "With": _with,
        "Macro": _macro,
        "CallBlock": _call_block,
        "Scope": lambda run, node: run._inner(node.body),
        "Break": lambda run, node: "break",
        "Continue": lambda run, node: "continue",
    }
    _EXPRESSIONS: ClassVar[Mapping[str, Callable[[Run, Any], Value]]] = {
        "Name": lambda run, node: run._scope.find(node.name),
        "Const": lambda run, node: node.value,
        "TemplateData": lambda run, node: node.data,
        "Tuple": lambda run, node: tuple(run._value(item) for item in node.items),
        "List": lambda run, node: [run._value(item) for item in node.items],
        "Dict": _mapping,
        "Getattr": _getattr,
        "Getitem": _getitem,
        "Filter": _filter,
        "Test": _test,
        "Call": lambda run, node: run._call(node),
        "CondExpr": _choice,
        "Concat": _concat,
        "Compare": _compare,
        "And": _and,
        "Or": _or,
        "Not": lambda run, node: not truth(run._value(node.node)),
        "Neg": lambda run, node: arithmetic("*", -1, run._value(node.node)),
        "Pos": lambda run, node: arithmetic("+", 0, run._value(node.node)),
        "Add": lambda run, node: add(run._value(node.left), run._value(node.right), run._meter),
        "Mul": lambda run, node: multiply(run._value(node.left), run._value(node.right), run._meter),
        "Sub": lambda run, node: arithmetic("-", run._value(node.left), run._value(node.right)),
        "Div": lambda run, node: arithmetic("/", run._value(node.left), run._value(node.right)),
        "FloorDiv": lambda run, node: arithmetic("//", run._value(node.left), run._value(node.right)),
        "Pow": lambda run, node: arithmetic("**", run._value(node.left), run._value(node.right)),
        "Mod": _modulo,
    }
