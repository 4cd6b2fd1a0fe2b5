"""Names of a finished graph: they say what a value is and depend on the graph alone, not on how it was made.

Tracing numbers what it sees, and passes number what they make. Here parameters keep their names, a product takes the
name of its weight, everything else that of its operator, and weights stand in the order in which they are read.
"""

from __future__ import annotations

import re
from collections import Counter

import onnx_ir as ir

PRODUCER = "paceline"
_PARAMETER = "model."
"""What names of parameters begin with: the model is an attribute of what is traced."""
_WEIGHT = re.compile(r"model\.(.+?)(?:\.lifted_tensor_\d+|\.weight)\..+")


def plain_names(model: ir.Model) -> None:
    """Rename the nodes, values and constants of a graph, but for its inputs, outputs and parameters.

    What tracing noted of inputs, outputs and constants goes too.
    """
    graph = model.graph
    model.producer_name, model.producer_version = PRODUCER, None
    read = dict.fromkeys(v for node in graph for v in node.inputs if v is not None and v.is_initializer())
    taken = [*read, *(v for v in graph.initializers.values() if v not in read)]
    for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
        value.metadata_props.clear()
    fixed = {str(v.name) for v in [*graph.inputs, *graph.outputs]}
    names = _Names(fixed | {str(v.name) for v in taken if str(v.name).startswith(_PARAMETER)})
    graph.initializers.clear()
    for value in taken:
        if not str(value.name).startswith(_PARAMETER):
            value.name = names.new("constant")
        if value.const_value is not None:
            value.const_value.name = value.name
    for number, node in enumerate(graph):
        for value in node.outputs:
            if value.name not in fixed:
                value.name = f"{_PARAMETER}{number}"  # out of the way of the names to come
    for node in graph:
        node.name = names.new(_purpose(node))
        free = [value for value in node.outputs if str(value.name) not in fixed]
        for place, value in enumerate(free):
            value.name = node.name if len(free) == 1 else f"{node.name}:{place}"
    for value in taken:
        graph.register_initializer(value)


def _purpose(node: ir.Node) -> str:
    """The weight that a node multiplies by, without its number formats, else its operator."""
    for value in node.inputs:
        found = (
            _WEIGHT.fullmatch(str(value.name))
            if value is not None and value.const_value is not None
            else None
        )
        if found is not None and node.op_type != "Transpose":
            return found[1]
    return node.op_type


class _Names:
    """Gives every name once."""

    def __init__(self, taken: set[str]) -> None:
        self._taken, self._seen = taken, Counter[str]()

    def new(self, base: str) -> str:
        """The name itself the first time, then with a number behind it."""
        while True:
            number = self._seen[base]
            self._seen[base] += 1
            name = f"{base}.{number}" if number else base
            if name not in self._taken:
                self._taken.add(name)
                return name
