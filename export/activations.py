"""Which activation a few nodes compute: found by running them on numbers, not by their names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from paceline.runtime.ops.packed_matmul import ACTIVATIONS

Numbers = npt.NDArray[np.float64]

_MOST = 12
"""Nodes that an activation takes at most."""
_SAMPLES: Numbers = np.linspace(-9, 9, 181)
_TOLERANCE = 1e-5
"""Constants are stored in single precision; gelu and its approximation are 50 times as far apart."""


def activation_between(start: ir.Value, end: ir.Value) -> str | None:
    """The activation of the contract that turns `start` into `end`, if the nodes between are nothing else.

    Nothing but them may read `start` or what stands between.
    """
    nodes = _between(start, end)
    if not nodes:
        return None
    values: dict[ir.Value, Any] = {start: _SAMPLES}
    try:
        for node in nodes:
            inputs = [values[v] if v in values else _number(v) for v in node.inputs if v is not None]
            values[node.outputs[0]] = _OPERATORS[node.op_type](node, *inputs)
    except (KeyError, TypeError, ValueError):
        return None
    return next((name for name in ACTIVATIONS if _close(values[end], _MEANT[name](_SAMPLES))), None)


def _between(start: ir.Value, end: ir.Value) -> list[ir.Node]:
    """The nodes that `end` takes from `start` on, in order; none where something else reads or feeds them."""
    found: list[ir.Node] = []
    waiting = [end]
    while waiting and len(found) <= _MOST:
        value = waiting.pop()
        node = value.producer()
        if value is start or value.const_value is not None or node in found:
            continue
        if node is None or node.domain != "" or len(node.outputs) != 1:
            return []
        found.append(node)
        waiting.extend(v for v in node.inputs if v is not None)
    inside = set(found)
    between = [start, *(n.outputs[0] for n in found if n.outputs[0] is not end)]
    closed = all({use.node for use in value.uses()} <= inside for value in between)
    if waiting or not closed or any(value.is_graph_output() for value in between):
        return []
    graph = end.producer().graph  # type: ignore[union-attr]
    assert graph is not None
    return [node for node in graph if node in inside]


def _number(value: ir.Value) -> Numbers:
    if value.const_value is None or value.const_value.size != 1:
        raise ValueError(f"{value.name} is no number")
    number: Numbers = value.const_value.numpy().astype(np.float64).reshape(())
    return number


def _close(a: Any, b: Numbers) -> bool:
    return np.shape(a) == b.shape and bool(np.abs(a - b).max() <= _TOLERANCE)


def _sigmoid(x: Numbers) -> Numbers:
    return 1 / (1 + np.exp(-x))


def _erf(x: Numbers) -> Numbers:
    return np.array([math.erf(v) for v in np.ravel(x)]).reshape(np.shape(x))


def _gelu(x: Numbers) -> Numbers:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _gelu_tanh(x: Numbers) -> Numbers:
    bent: Numbers = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + bent)


def _gelu_node(node: ir.Node, x: Numbers) -> Numbers:
    kind = node.attributes.get("approximate")
    return _gelu_tanh(x) if kind is not None and kind.as_string() == "tanh" else _gelu(x)


def _swish_node(node: ir.Node, x: Numbers) -> Numbers:
    alpha = node.attributes.get("alpha")
    return x * _sigmoid(x * (1.0 if alpha is None else alpha.as_float()))


_MEANT: dict[str, Callable[[Numbers], Numbers]] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}

_OPERATORS: dict[str, Callable[..., Numbers]] = {
    "Add": lambda _, a, b: a + b,
    "Sub": lambda _, a, b: a - b,
    "Mul": lambda _, a, b: a * b,
    "Div": lambda _, a, b: a / b,
    "Pow": lambda _, a, b: a**b,
    "Neg": lambda _, a: -a,
    "Exp": lambda _, a: np.exp(a),
    "Erf": lambda _, a: _erf(a),
    "Tanh": lambda _, a: np.tanh(a),
    "Sigmoid": lambda _, a: _sigmoid(a),
    "Identity": lambda _, a: a,
    "Gelu": _gelu_node,
    "Swish": _swish_node,
}
