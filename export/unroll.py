"""A decoder several levels deep in one graph: the best token of a level is what the next level reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from paceline.export.functions import append_functions
from paceline.export.writer import GraphWriter
from paceline.runtime.model.contract import ODDS
from paceline.runtime.ops import tree_attention as attention

INTEGER = ir.DataType.INT64
_END = np.iinfo(np.int64).max
_ATTENTION = {
    attention.NAME: (attention.INPUTS, dict.fromkeys(("q", "k_new", "v_new"), 2), 2),
    attention.ROTARY_NAME: (attention.ROTARY_INPUTS, dict.fromkeys(("qkv", "cos", "sin"), 1), 1),
}
"""Of an operator that attends: its inputs, the axis of the rows in those that have one, and in what it gives."""
_PLACES = ("positions", "inv_freq", "rope_scale")
"""Inputs that say where a row stands."""
_COUNTING = ("Shape", "Expand")
"""Operators that a graph counts its rows with."""


def unrolled(model: ir.Model, depth: int) -> ir.Model | None:
    """The finished graph of a decoder as one that drafts `depth` levels, 2 or more; None for one that counts its rows.

    Rows only see each other in attention, so a level runs its one row through the same nodes, and attends together with
    the rows before it. Inputs are those of the contract for drafts; the weights are those of `model`.
    """
    if any(node.op_type in _COUNTING for node in model.graph):
        return None
    return _Unrolling(model, depth).made()


class _Unrolling:
    def __init__(self, model: ir.Model, depth: int) -> None:
        self._source, self._depth, self._w = model, depth, GraphWriter()
        for name, value in model.graph.initializers.items():
            twin = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
            self._w.constants[name] = twin
        self._inputs = {str(value.name): value for value in model.graph.inputs}
        self._own = {
            name: self._w.input(name, ir.DataType(value.dtype or INTEGER), *_dims(value))
            for name, value in self._inputs.items()
            if name not in ("positions", "tree_mask", "rows")
        }
        self._own["positions"] = self._w.input("positions", INTEGER, "N")
        self._own["tree_mask"] = self._w.input("tree_mask", ir.DataType.BOOL, "N", "N")
        self._placed = self._nodes_of_places()
        self._whole: dict[ir.Value, ir.Value] = {}
        self._rows: dict[tuple[ir.Value, str], ir.Value] = {}

    def made(self) -> ir.Model:
        w, depth = self._w, self._depth
        logits = next(value for value in self._source.graph.outputs if value.name == "logits")
        vocab = int(str(_dims(logits)[-1]))
        noise = w.input("noise", ir.DataType.FLOAT, depth, vocab)
        rows = w.nodes("Split", [noise], [(1, vocab)] * depth, {"axis": 0, "num_outputs": depth})
        self._clone_all(self._placed, self._whole, {"positions": self._own["positions"]}, "all")
        token, tokens, said = self._own["token_ids"], list[ir.Value](), list[ir.Value]()
        kept: dict[str, list[ir.Value]] = {}
        for level in range(depth):
            found = self._level(level, token)
            said.append(found[logits])
            score = w.node("Add", [found[logits], rows[level]], (1, vocab))
            token = w.node("ArgMax", [score], (1,), {"axis": -1, "keepdims": 0}, INTEGER)
            tokens.append(token)
            for value in self._source.graph.outputs:
                if value is not logits:
                    kept.setdefault(str(value.name), []).append(found[value])
        outputs = [
            w.node("Concat", tokens, (depth,), {"axis": 0}, INTEGER),
            w.node("Concat", said, (depth, vocab), {"axis": 0}),
        ]
        outputs[0].name, outputs[1].name = "tokens", "logits"
        for value in self._source.graph.outputs:
            if value.name == ODDS:
                outputs.append(w.node("Concat", kept[ODDS], (depth, 1), {"axis": 0}))
                outputs[-1].name = ODDS
            elif value is not logits:
                outputs.append(self._new_rows(value, kept[str(value.name)]))
        model = w.model([*self._own.values(), noise], outputs, opset=self._source.opset_imports[""])
        model.ir_version = self._source.ir_version
        common.RemoveUnusedNodesPass()(model)
        append_functions(model)
        return model

    def _nodes_of_places(self) -> list[ir.Node]:
        """Nodes that know nothing of a row but where it stands."""
        known = {self._inputs[name] for name in _PLACES if name in self._inputs}
        found = []
        for node in self._source.graph:
            read = [value for value in node.inputs if value is not None and value.const_value is None]
            if read and all(value in known for value in read):
                known.update(node.outputs)
                found.append(node)
        return found

    def _level(self, level: int, token: ir.Value) -> dict[ir.Value, ir.Value]:
        """Run one level: all of the text that was not read yet, or the token that the level before chose."""
        w, last = self._w, self._depth - 1 - level
        if level == 0:
            own = self._upto(self._own["positions"], last, 0)
        else:
            cuts = (w.whole(f"place.{level}", -1 - last), w.whole(f"after.{level}", -last if last else _END))
            own = w.node("Slice", [self._own["positions"], *cuts, w.whole("axis.0", 0)], (1,), dtype=INTEGER)
        given = {"token_ids": token, "positions": own, "rows": w.whole("last", -1)}
        found: dict[ir.Value, ir.Value] = {}
        self._clone_all(self._source.graph, found, given, str(level))
        return found

    def _clone_all(
        self,
        nodes: Iterable[ir.Node],
        found: dict[ir.Value, ir.Value],
        given: Mapping[str, ir.Value],
        tag: str,
    ) -> None:
        for node in nodes:
            if node.domain == attention.DOMAIN and node.op_type in _ATTENTION:
                self._attend(node, found, int(tag))
                continue
            inputs = [None if value is None else self._of(value, found, given) for value in node.inputs]
            found.update(zip(node.outputs, self._clone(node, inputs, tag), strict=True))

    def _of(
        self, value: ir.Value, found: Mapping[ir.Value, ir.Value], given: Mapping[str, ir.Value]
    ) -> ir.Value:
        """What stands for a value of the source here."""
        if value in found:
            return found[value]
        name = str(value.name)
        return given.get(name) or self._own.get(name) or self._w.constants[name]

    def _clone(self, node: ir.Node, inputs: Iterable[ir.Value | None], tag: str) -> list[ir.Value]:
        made = self._w.nodes(
            node.op_type,
            list(inputs),
            [_open(value) for value in node.outputs],
            node.attributes,
            domain=node.domain,
        )
        for value, source in zip(made, node.outputs, strict=True):
            value.type, value.name = source.type, f"{source.name}.{tag}"
        return list(made)

    def _attend(self, node: ir.Node, found: dict[ir.Value, ir.Value], level: int) -> None:
        """Attend from the rows of all levels so far; what the last of them saw goes on."""
        names, axes, out_axis = _ATTENTION[node.op_type]
        last, inputs = self._depth - 1 - level, list[ir.Value | None]()
        for name, value in zip(names, node.inputs, strict=False):
            if value is None:
                inputs.append(None)
            elif name in ("tree_mask", "positions"):
                axes_cut = (0, 1) if name == "tree_mask" else (0,)
                inputs.append(self._upto(self._own[name], last, *axes_cut))
            elif name in ("cos", "sin"):
                inputs.append(self._upto(self._whole[value], last, axes[name]))
            elif name in axes:
                inputs.append(self._joined(value, found[value], f"{node.name}:{name}", axes[name]))
            else:
                inputs.append(self._of(value, found, {}))
        outputs = self._clone(node, inputs, str(level))
        if level:
            cuts = self._w.whole("last", -1), self._w.whole("end", _END)
            seen = self._w.node(
                "Slice",
                [outputs[0], *cuts, self._w.whole(f"axis.{out_axis}", out_axis)],
                _open(node.outputs[0]),
            )
            outputs[0] = seen
        found.update(zip(node.outputs, outputs, strict=True))

    def _joined(self, source: ir.Value, own: ir.Value, use: str, axis: int) -> ir.Value:
        """Rows of all levels so far."""
        before = self._rows.get((source, use))
        if before is not None:
            own = self._w.node("Concat", [before, own], _open(source), {"axis": axis})
        self._rows[source, use] = own
        return own

    def _upto(self, value: ir.Value, last: int, *axes: int) -> ir.Value:
        """All rows but those of the last so many levels."""
        if last == 0:
            return value
        w, key = self._w, f"but.{last}:{','.join(map(str, axes))}"
        if (value, key) not in self._rows:
            n = len(axes)
            cuts = [w.whole(f"from.{n}", *[0] * n), w.whole(f"to.{last}.{n}", *[-last] * n)]
            cuts.append(w.whole(f"axes.{key}", *axes))
            made = w.node("Slice", [value, *cuts], _open(value), dtype=value.dtype or INTEGER)
            self._rows[value, key] = made
        return self._rows[value, key]

    def _new_rows(self, source: ir.Value, levels: list[ir.Value]) -> ir.Value:
        """Keys or values of all rows: attention that makes them makes those of earlier levels again."""
        node = source.producer()
        if node is not None and node.op_type == attention.ROTARY_NAME:
            made = levels[-1]
        else:
            made = self._w.node("Concat", levels, _open(source), {"axis": 1})
        heads, _, size = _dims(source)
        made.name, made.shape = source.name, ir.Shape([heads, "N", size])
        return made


def _dims(value: ir.Value) -> list[int | str]:
    assert value.shape is not None
    return [size if isinstance(size, int) else str(size.value) for size in value.shape.dims]


def _open(value: ir.Value) -> ir.Shape | None:
    """The shape of a value with whatever is not fixed left open."""
    if value.shape is None:
        return None
    return ir.Shape([size if isinstance(size, int) else None for size in value.shape.dims])
