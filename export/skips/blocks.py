"""The blocks of a finished graph that can be left out: attention or feed-forward, each behind a residual addition."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from paceline.export.errors import ExportError

_ADDITIONS = {("", "Add"), ("paceline", "QMatMulAdd")}
_CACHE = "cache_k."
_LEAST = 1024
"""Bytes of a weight that counts: smaller ones are not read for their own sake."""


@dataclass(frozen=True, slots=True)
class Block:
    """What one residual addition adds. name: `attention.L` or `mlp.L`. at: of the addition's inputs the one that is the
    stream, which is left where the block is left out. bytes: weights that it alone reads.
    """

    name: str
    addition: ir.Node
    at: int
    bytes: int

    @property
    def stream(self) -> ir.Value:
        """What goes on where it is left out."""
        value = self.addition.inputs[self.at]
        assert value is not None
        return value


def blocks_of(model: ir.Model, layers: int) -> list[Block]:
    """All blocks, in order. Raises ExportError for a graph whose layers do not add to one stream."""
    return _Finder(model).blocks(layers)


def leave_out(model: ir.Model, names: Collection[str], layers: int, taps: Collection[str] = ()) -> ir.Model:
    """A twin of a finished target without these blocks: it gives these taps alone, and new rows of the other layers.

    Inputs and initializers stay, used or not, so that both graphs share all weights. Raises ExportError.
    """
    twin = model.clone()
    for block in blocks_of(twin, layers):
        if block.name in names:
            ir.convenience.replace_all_uses_with(block.addition.outputs[0], block.stream)
    left = {f"new_{side}.{_layer(name)}" for name in names if name.startswith("attention.") for side in "kv"}
    left |= {name for v in twin.graph.outputs if (name := str(v.name)).startswith("hidden")} - {*taps}
    twin.graph.outputs[:] = [v for v in twin.graph.outputs if v.name not in left]
    prune(twin.graph)
    return twin


def prune(graph: ir.Graph) -> None:
    """Take out what no output depends on; inputs and initializers stay."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)


def _layer(name: str) -> str:
    return name.partition(".")[2]


class _Finder:
    """What every node of a graph depends on, as bits."""

    def __init__(self, model: ir.Model) -> None:
        self._nodes = list(model.graph)
        self._number = {id(node): number for number, node in enumerate(self._nodes)}
        self._above: list[int] = []
        for node in self._nodes:
            bits = 0
            for value in node.inputs:
                if (number := self._maker(value)) is not None:
                    bits |= self._above[number] | 1 << number
            self._above.append(bits)

    def blocks(self, layers: int) -> list[Block]:
        found: list[Block] = []
        reads = {
            value.name: number
            for number, node in enumerate(self._nodes)
            for value in node.inputs
            if value is not None and value.name is not None and value.name.startswith(_CACHE)
        }
        for layer in range(layers):
            attention = reads.get(f"{_CACHE}{layer}")
            behind = None if attention is None else self._behind(attention)
            if behind is None:
                raise ExportError(
                    f"layer {layer} of this model adds to no stream of its own: no blocks of it can be left out"
                )
            found.append(self._block(f"attention.{layer}", *behind))
            following = reads.get(f"{_CACHE}{layer + 1}", len(self._nodes))
            if (more := self._following(behind[0], following)) is not None:
                found.append(self._block(f"mlp.{layer}", *more))
        return found

    def _behind(self, attention: int) -> tuple[int, int] | None:
        """The first addition to what the attention began with, and its input that is that."""
        for number in range(attention + 1, len(self._nodes)):
            if self._is_addition(number) and self._above[number] >> attention & 1:
                for at, maker in self._operands(number):
                    if self._above[attention] >> maker & 1:
                        return number, at
        return None

    def _following(self, addition: int, end: int) -> tuple[int, int] | None:
        """The next addition to the same stream before a node."""
        for number in range(addition + 1, end):
            if self._is_addition(number):
                operands = self._operands(number)
                for at, maker in operands:
                    if maker == addition and len(operands) > 1:
                        return number, at
        return None

    def _is_addition(self, number: int) -> bool:
        node = self._nodes[number]
        return (node.domain, node.op_type) in _ADDITIONS

    def _operands(self, number: int) -> list[tuple[int, int]]:
        """The inputs of an addition that other nodes make, and which."""
        made = ((at, self._maker(value)) for at, value in enumerate(self._nodes[number].inputs))
        return [(at, maker) for at, maker in made if maker is not None]

    def _maker(self, value: ir.Value | None) -> int | None:
        node = None if value is None else value.producer()
        return None if node is None else self._number[id(node)]

    def _block(self, name: str, addition: int, at: int) -> Block:
        stream = self._maker(self._nodes[addition].inputs[at])
        assert stream is not None
        own = (self._above[addition] | 1 << addition) & ~(self._above[stream] | 1 << stream)
        weights = {
            value.name: value.const_value.nbytes
            for number, node in enumerate(self._nodes)
            if own >> number & 1 and (self._above[number] >> stream & 1)
            for value in node.inputs
            if value is not None and value.const_value is not None and value.const_value.nbytes >= _LEAST
        }
        return Block(name, self._nodes[addition], at, sum(weights.values()))
