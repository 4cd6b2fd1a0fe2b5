"""Writing a graph node by node, without torch: inputs, constants and nodes under names that say what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from paceline.export.functions import append_functions
from paceline.runtime.ops import tree_attention as attention

OPSET = 23
_IR_VERSION = 10


class GraphWriter:
    """Collects the nodes and constants of one graph; a constant stands in it once, under its name."""

    def __init__(self) -> None:
        self._nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
        """A new input of the graph, to be listed in `model`."""
        return ir.val(name, dtype, ir.Shape(shape))

    def constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """The constant of this name; it is made of `array` the first time."""
        if name not in self.constants:
            tensor = ir.tensor(array, name=name)
            self.constants[name] = ir.val(name, tensor.dtype, array.shape, const_value=tensor)
        return self.constants[name]

    def whole(self, purpose: str, *numbers: int) -> ir.Value:
        """A small constant of whole numbers, such as axes."""
        return self.constant(f"whole.{purpose}", np.array(numbers, np.int64))

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        shape: Any,
        attributes: Mapping[str, Any] | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
        domain: str = "",
    ) -> ir.Value:
        """A node with one output of this shape."""
        return self.nodes(op, inputs, [shape], attributes, dtype, domain)[0]

    def nodes(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        shapes: Sequence[Any],
        attributes: Mapping[str, Any] | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """A node with an output of each of these shapes."""
        node = ir.node(op, inputs, attributes, domain=domain, num_outputs=len(shapes))
        number = len(self._nodes)
        for place, (out, shape) in enumerate(zip(node.outputs, shapes, strict=True)):
            out.name = f"value.{number}" if len(shapes) == 1 else f"value.{number}:{place}"
            out.dtype, out.shape = dtype, ir.Shape(shape)
        self._nodes.append(node)
        return node.outputs

    def model(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], opset: int = OPSET) -> ir.Model:
        """The graph as a model with all constants, and the bodies of our operators."""
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self._nodes,
            initializers=list(self.constants.values()),
            opset_imports={"": opset, attention.DOMAIN: attention.VERSION},
            name="main_graph",
        )
        model = ir.Model(graph, ir_version=_IR_VERSION)
        append_functions(model)
        return model
