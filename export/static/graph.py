"""A finished graph as accelerators take it: fixed sizes, what is seen as a bias, attention over all rows of the cache.

Each rule is what some execution provider asks for: no sizes that are known only when it runs, no empty tensors, no
whole numbers beyond 32 bits, at most four axes, ONNX 21, and operators that all of them have.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from paceline.export.errors import ExportError
from paceline.export.static.tables import Table
from paceline.runtime.model.contract import bias_name
from paceline.runtime.ops import tree_attention as contract

_LARGEST = 2**31 - 1
_BY_NUMBER = ("Add", "Sub", "Mul", "Div")
_BY_ROW = ("Concat", "LayerNormalization")
"""What works along the last axis, and is the same with fewer axes before it; _BY_NUMBER is so for each number."""
_CARRIES_INTEGERS = ("Gather", "Unsqueeze", "Squeeze", "Reshape")
_FLOAT, _INT32 = ir.DataType.FLOAT, ir.DataType.INT32


@dataclass(frozen=True, slots=True)
class Sizes:
    """rows: new ones. asked: of those that logits are given of. context: rows of the cache."""

    rows: int
    asked: int
    context: int


def windows_of(graph: ir.Model) -> list[int]:
    """The windows of its layers, ascending; 0 where one has none."""
    return sorted({node.attributes["window"].as_int() for node in _attention(graph.graph)})


def static_as(graph: ir.Model, sizes: Sizes, tables: Iterable[Table]) -> ir.Model:
    """A twin of a finished graph of stock operators for these sizes, over the same weights.

    tables: see `tables_of`. Raises ExportError for a graph that computes something else of token ids and positions than
    rows of tables.
    """
    model = graph.clone()
    _Rewriter(model, sizes).rewrite(tables)
    return model


def _attention(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if (node.domain, node.op_type) == (contract.DOMAIN, contract.NAME)]


@dataclass(slots=True)
class _Rewriter:
    model: ir.Model
    sizes: Sizes
    before: ir.Node | None = None
    """New nodes go before this one."""
    made: int = 0
    three: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """What was given three axes, by the value with four."""
    shared: dict[tuple[Any, ...], ir.Value] = field(default_factory=dict)
    """What several nodes read."""

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph

    def rewrite(self, tables: Iterable[Table]) -> None:
        self._fix_sizes()
        for table in tables:
            self._look_up(table)
        self._give_outputs()
        for node in _attention(self.graph):
            self._attend(node)
        for node in list(self.graph):
            node.attributes.pop("allowzero", None)  # no size is 0, and some providers do not know it
            self._widen(node)
        self._give_inputs()
        self.model.functions.clear()
        for domain in set(self.model.opset_imports) - {"", "com.microsoft"}:
            del self.model.opset_imports[domain]
        common.RemoveUnusedNodesPass()(self.model)
        common.TopologicalSortPass()(self.model)
        self._check()

    def _fix_sizes(self) -> None:
        known = {"T": self.sizes.rows, "R": self.sizes.asked, "S": self.sizes.context}
        nodes = (out for node in self.graph for out in node.outputs)
        for value in [*self.graph.inputs, *nodes]:
            if value.dtype == ir.DataType.INT64 and value.producer() is not None:
                value.type = value.shape = None  # some become 32 bits
            elif value.shape is not None:
                dims = [d if isinstance(d, int) else known.get(str(d.value), d) for d in value.shape]
                value.shape = ir.Shape(dims)

    def _look_up(self, table: Table) -> None:
        value = next(out for node in self.graph for out in node.outputs if out.name == table.name)
        positions = next(v for v in self.graph.inputs if v.name == "positions")
        shape = table.tensor.shape.numpy()
        constant = ir.val(str(table.tensor.name), table.tensor.dtype, shape, const_value=table.tensor)
        self.graph.register_initializer(constant)
        self.before = self.graph[0]
        rows = self.node("Gather", [constant, positions], {"axis": table.axis}, like=value)
        value.replace_all_uses_with(rows, replace_graph_outputs=True)

    def _give_outputs(self) -> None:
        """New rows and taps come out of what computes them: captured graphs do not repeat a view onto an output."""
        for place, value in enumerate(list(self.graph.outputs)):
            node = value.producer()
            if node is None or node.op_type != "Squeeze" or (whole := node.inputs[0]) is None:
                continue
            self.before = node
            heads = whole.shape is not None and len(whole.shape) == 4
            found = self.plain(whole) if heads else self._first(whole)
            if found.is_graph_output():
                found = self.node("Identity", [found], like=found)
            name, value.name = value.name, f"{value.name}.squeezed"
            found.name = name
            value.replace_all_uses_with(found, replace_graph_outputs=True)
            found.type, found.shape = ir.TensorType(_FLOAT), value.shape
            self.graph.outputs[place] = found

    def plain(self, value: ir.Value) -> ir.Value:
        """The same without its first axis of one: heads, rows and numbers of a head."""
        if value not in self.three:
            self.three[value] = self._plain(value)
        return self.three[value]

    def _plain(self, value: ir.Value) -> ir.Value:
        node = value.producer()
        if node is not None and node.inputs[0] is not None:
            self.before, x = node, node.inputs[0]
            if node.op_type == "Reshape" and (shape := _numbers(node.inputs[1])) is not None:
                if len(shape) == 4 and shape[0] == 1:
                    return self.node("Reshape", [x, self.whole(*shape[1:])])
            elif node.op_type == "Transpose" and (perm := node.attributes["perm"].as_ints())[0] == 0:
                inner, self.before = self.plain(x), node
                return self.node("Transpose", [inner], {"perm": [axis - 1 for axis in perm[1:]]})
            elif node.op_type == "SimplifiedLayerNormalization" and _last(node) and value.shape is not None:
                inner, self.before = self.plain(x), node
                return self._normed(inner, node, [int(str(size)) for size in value.shape[1:]])
            elif node.op_type in _BY_NUMBER or (node.op_type in _BY_ROW and _last(node)):
                operands = [self._narrower(operand) for operand in node.inputs]
                self.before = node
                return self.node(node.op_type, operands, dict(node.attributes))
            elif node.op_type in ("Split", "Slice") and _cuts_last(node):
                inner, self.before = self.plain(x), node
                self._cut(inner, node)
                return self.three[value]
            self.before = _next(node)
        return self._first(value)

    def _normed(self, x: ir.Value, node: ir.Node, shape: list[int]) -> ir.Value:
        """Heads normed as the rows of a matrix: of three axes, many rows and short heads QNN makes wrong numbers."""
        rows = self.node("Reshape", [x, self.whole(shape[0] * shape[1], shape[2])])
        normed = self.node(node.op_type, [rows, node.inputs[1]], dict(node.attributes))
        return self.node("Reshape", [normed, self.whole(*shape)])

    def _narrower(self, value: ir.Value | None) -> ir.Value | None:
        """An operand of something that has one axis less: those with fewer axes stay as they are."""
        shape = None if value is None else value.shape
        return self.plain(value) if value is not None and shape is not None and len(shape) == 4 else value

    def _first(self, value: ir.Value) -> ir.Value:
        return self.node("Gather", [value, self.constant("first", np.array(0, np.int64))], {"axis": 0})

    def _cut(self, inner: ir.Value, node: ir.Node) -> None:
        """A Split or Slice along the last axis of what has one axis less."""
        inputs = [inner, *node.inputs[1:]]
        attributes = dict(node.attributes)
        if node.op_type == "Slice":
            inputs[3] = self.whole(-1)
        else:
            attributes["axis"] = ir.AttrInt64("axis", -1)
        cut = ir.node(node.op_type, inputs, attributes, num_outputs=len(node.outputs))
        for old, new in zip(node.outputs, cut.outputs, strict=True):
            new.name, new.type = self._name(), ir.TensorType(_FLOAT)
            self.three[old] = new
        self._insert(cut)

    def _attend(self, node: ir.Node) -> None:
        """Scores of the cache's rows and of the new ones side by side, with the bias; heads of a group are rows."""
        q, k, v, cache_k, cache_v = node.inputs[:5]
        if q is None or k is None or v is None or cache_k is None or cache_v is None or q.shape is None:
            raise ExportError("an attention layer lacks an input")
        if len(node.inputs) > 8:
            raise ExportError("static graphs have no attention sinks, nor narrow caches")
        kv_heads, width, heads = int(str(cache_k.shape[0])), int(str(cache_k.shape[2])), int(str(q.shape[1]))  # type: ignore[index]
        group, rows, context = heads // kv_heads, self.sizes.rows, self.sizes.context
        keys, values, queries = self.plain(k), self.plain(v), self.plain(q)
        self.before = node
        cap, scale = node.attributes["softcap"].as_float(), node.attributes["scale"].as_float()
        if group > 1:
            queries = self.node("Reshape", [queries, self.whole(kv_heads, group * rows, width)])
        queries = self.node("Mul", [queries, self.number(scale / cap if cap else scale)])
        scores = [
            self.node("MatMul", [queries, self.node("Transpose", [x], {"perm": [0, 2, 1]})])
            for x in (cache_k, keys)
        ]
        score = self.node("Concat", scores, {"axis": -1})
        if cap:
            score = self.node("Mul", [self.node("Tanh", [score]), self.number(cap)])
        biased = self.node("Add", [score, self._bias(node.attributes["window"].as_int(), group)])
        weights = self.split(self.node("Softmax", [biased], {"axis": -1}), [context, rows])
        read = [self.node("MatMul", [w, x]) for w, x in zip(weights, (cache_v, values), strict=True)]
        both = self.node("Add", read)
        out = self.node("Reshape", [both, self.whole(1, heads, rows, width)], like=node.outputs[0])
        node.outputs[0].replace_all_uses_with(out)
        self.graph.remove(node, safe=True)

    def _bias(self, window: int, group: int) -> ir.Value:
        """The bias of this window, once for each head of a group."""
        bias = next((v for v in self.graph.inputs if v.name == bias_name(window)), None)
        if bias is None:
            shape = [self.sizes.rows, self.sizes.context + self.sizes.rows]
            bias = ir.val(bias_name(window), _FLOAT, shape)
            self.graph.inputs.append(bias)
        return self._once("Concat", [bias] * group, {"axis": 0}) if group > 1 else bias

    def _widen(self, node: ir.Node) -> None:
        """Rows of a table of 16 bits that become floats: so does the table, for some devices have no such numbers."""
        table, out = node.inputs[0] if node.inputs else None, node.outputs[0]
        readers = [use.node for use in out.uses()]
        if node.op_type != "Gather" or table is None or not table.is_initializer() or table.dtype == _FLOAT:
            return
        if (
            len(readers) != 1
            or readers[0].op_type != "Cast"
            or readers[0].attributes["to"].as_int() != _FLOAT
        ):
            return
        wide = self._once("Cast", [table], {"to": _FLOAT.value})
        self.before = node
        rows = self.node("Gather", [wide, node.inputs[1]], dict(node.attributes), like=readers[0].outputs[0])
        readers[0].outputs[0].replace_all_uses_with(rows, replace_graph_outputs=True)

    def _give_inputs(self) -> None:
        for value in list(self.graph.inputs):
            if value.name in ("token_ids", "positions", "rows"):
                value.type = ir.TensorType(_INT32)
            if value.name in ("tree_mask", "past_len"):
                for use in value.uses():
                    raise ExportError(
                        f"{use.node.op_type} reads {value.name}, which static graphs do not have"
                    )
                self.graph.inputs.remove(value)

    def _check(self) -> None:
        whole = {v for v in self.graph.inputs if v.dtype == _INT32}
        for node in self.graph:
            read = [value for value in node.inputs if value in whole]
            if read and node.op_type not in _CARRIES_INTEGERS:
                raise ExportError(
                    f"it computes with token ids or positions ({node.op_type}), which static graphs only look up"
                )
            if read and node.inputs[0] in whole:
                whole.update(node.outputs)
        for value in self.graph.initializers.values():
            if (numbers := _numbers(value)) is not None and max(map(abs, numbers), default=0) > _LARGEST:
                array = value.const_value.numpy().clip(-_LARGEST, _LARGEST)  # type: ignore[union-attr]
                value.const_value = ir.tensor(array, name=value.name)

    def split(self, x: ir.Value, widths: list[int]) -> list[ir.Value]:
        """Cut the last axis."""
        node = ir.node("Split", [x, self.whole(*widths)], {"axis": -1}, num_outputs=len(widths))
        for out in node.outputs:
            out.name, out.type = self._name(), ir.TensorType(_FLOAT)
        self._insert(node)
        return list(node.outputs)

    def node(
        self,
        op: str,
        inputs: list[Any],
        attributes: dict[str, Any] | None = None,
        like: ir.Value | None = None,
    ) -> ir.Value:
        """A new node with one output, of the shape of `like` where that is given."""
        node = ir.node(op, inputs, attributes or {})
        out = node.outputs[0]
        out.name, out.type = self._name(), ir.TensorType(_FLOAT)
        out.shape = None if like is None else like.shape
        self._insert(node)
        return out

    def _once(self, op: str, inputs: list[Any], attributes: dict[str, Any] | None = None) -> ir.Value:
        """A node that stands at the front, where all may read it: its inputs are those of the graph, or tables."""
        key = op, *inputs
        if key not in self.shared:
            before, maker = self.before, inputs[0].producer()
            self.before = self.graph[0] if maker is None else _next(maker)
            self.shared[key] = self.node(op, inputs, attributes)
            self.before = before
        return self.shared[key]

    def constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """The constant of this name."""
        name = f"static.{name}"
        if name not in self.graph.initializers:
            tensor = ir.tensor(array, name=name)
            self.graph.register_initializer(ir.val(name, tensor.dtype, array.shape, const_value=tensor))
        return self.graph.initializers[name]

    def whole(self, *numbers: int) -> ir.Value:
        """A small constant of whole numbers."""
        return self.constant("whole." + ".".join(map(str, numbers)), np.array(numbers, np.int64))

    def number(self, value: float) -> ir.Value:
        """A factor."""
        return self.constant(f"number.{value!r}", np.array(value, np.float32))

    def _name(self) -> str:
        self.made += 1
        return f"static.{self.made}"

    def _insert(self, node: ir.Node) -> None:
        if self.before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.before, node)


def _next(node: ir.Node) -> ir.Node | None:
    """The node after this one in the list of its graph."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    found = False
    for other in graph:
        if found:
            return other
        found = other is node
    return None


def _numbers(value: ir.Value | None) -> list[int] | None:
    """The content of a small constant of whole numbers."""
    tensor = None if value is None else value.const_value
    if tensor is None or tensor.dtype != ir.DataType.INT64:
        return None
    return [int(number) for number in tensor.numpy().reshape(-1)]


def _number(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None else attribute.as_int()


def _last(node: ir.Node) -> bool:
    axis = node.attributes.get("axis")
    return axis is None or axis.as_int() in (-1, 3)


def _cuts_last(node: ir.Node) -> bool:
    """Whether a Split or a Slice of four axes cuts the last one alone."""
    if node.op_type == "Split":
        return _number(node, "axis") in (-1, 3)
    axes = _numbers(node.inputs[3]) if len(node.inputs) > 3 else None
    return axes in ([-1], [3])
