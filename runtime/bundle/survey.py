"""What an ONNX file asks of whoever runs it, read without onnx: operators, functions, tensors and where they stand.

A file that holds what the exporter never writes is refused while it is read: graphs inside nodes, sparse tensors,
training, tensors of text. See onnx.proto of ONNX 1.23 for the numbers of the fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from paceline.runtime.bundle.wire import BYTES, DOUBLE, FLOAT, MANY, NUMBER, Message, Reader, Span, WireError

LARGEST = 1 << 26
"""Bytes of a graph file: weights stand elsewhere, and the largest graph of a family is some hundred kilobytes."""
_MOST_FIELDS = 1 << 19
"""A layer whose products are not fused takes about a thousand."""
_MOST_AXES = 16
_EXTERNAL = 1
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 16: 2}
"""Bytes of an element by ONNX's number for its type."""

_MODEL = Message(
    "model",
    {1: NUMBER, 2: BYTES, 3: BYTES, 4: BYTES, 5: NUMBER, 6: BYTES, 7: BYTES}
    | dict.fromkeys((8, 14, 25), MANY + BYTES),
    {20: "training"},
)
_GRAPH = Message(
    "graph",
    {2: BYTES, 10: BYTES} | dict.fromkeys((1, 5, 11, 12, 13, 16), MANY + BYTES),
    {15: "a sparse tensor"},
)
_NODE = Message(
    "node",
    {3: BYTES, 4: BYTES, 6: BYTES, 7: BYTES, 8: BYTES} | dict.fromkeys((1, 2, 5, 9), MANY + BYTES),
    {},
)
_ATTRIBUTE = Message(
    "attribute",
    {1: BYTES, 2: FLOAT, 3: NUMBER, 4: BYTES, 5: BYTES, 7: MANY + FLOAT, 8: MANY + NUMBER, 9: MANY + BYTES}
    | {13: BYTES, 20: NUMBER, 21: BYTES},
    dict.fromkeys((6, 11), "a graph inside a node") | dict.fromkeys((22, 23), "a sparse tensor"),
)
_ATTRIBUTE_KINDS = {2: 1, 3: 2, 4: 3, 5: 4, 7: 6, 8: 7, 9: 8}
"""ONNX's number for what an attribute is, by the field that it then has."""
_TENSOR = Message(
    "tensor",
    {1: MANY + NUMBER, 2: NUMBER, 4: MANY + FLOAT, 5: MANY + NUMBER, 7: MANY + NUMBER, 8: BYTES, 9: BYTES}
    | {10: MANY + DOUBLE, 11: MANY + NUMBER, 12: BYTES, 13: MANY + BYTES, 14: NUMBER, 16: MANY + BYTES},
    {3: "a tensor in segments", 6: "a tensor of text"},
)
_TYPED = (4, 5, 7, 10, 11)
"""Fields of a tensor that hold its numbers one by one; ONNX Runtime counts these."""
_FUNCTION = Message(
    "function",
    {1: BYTES, 8: BYTES, 10: BYTES, 13: BYTES} | dict.fromkeys((4, 5, 6, 7, 9, 11, 12, 14), MANY + BYTES),
    {},
)
_IMPORT = Message("version of operators", {1: BYTES, 2: NUMBER}, {})
_ENTRY = Message("place", {1: BYTES, 2: BYTES}, {})
_VALUE = Message("value", {1: BYTES, 2: BYTES, 3: BYTES, 4: MANY + BYTES}, {})

Operator = tuple[str, str]
"""Domain and name."""
Callee = tuple[str, str, str]
"""Domain, name and overload: a function is the body of the nodes that have all three."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A constant. kind: ONNX's number of its element type. raw: its bytes, if they stand in the file in that form."""

    name: str
    kind: int
    shape: tuple[int, ...]
    place: Place | None
    raw: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of another file, beside the graph's."""

    location: str
    offset: int
    length: int


Attribute = tuple[int, ...] | Tensor | str
"""Whole numbers (none where it has others), a tensor, or the name of the attribute of a call that it stands for."""


@dataclass(frozen=True, slots=True)
class Node:
    """One call of an operator. values: numbers in its attributes."""

    operator: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: int = 0
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    overload: str = ""

    @property
    def callee(self) -> Callee:
        """The function that is its body, if the file has it."""
        return (*self.operator, self.overload)


@dataclass(frozen=True, slots=True)
class Function:
    """The body of an operator. defaults: of attributes that a call leaves out; values: numbers in them."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: list[Node]
    defaults: Mapping[str, Attribute]
    values: int


@dataclass(frozen=True, slots=True)
class Survey:
    """A whole file. constants: tensors in attributes, of functions too; none of them stands in another file."""

    nodes: list[Node] = field(default_factory=list)
    functions: dict[Callee, Function] = field(default_factory=dict)
    initializers: dict[str, Tensor] = field(default_factory=dict)
    constants: list[Tensor] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)


def survey(raw: bytes) -> Survey:
    """Read a model. Raises WireError for bytes that are none, or that hold what the exporter never writes."""
    if len(raw) > LARGEST:
        raise WireError(f"has {len(raw)} bytes, more than the graph of any model")
    return _Surveyor(raw).model()


class _Surveyor:
    def __init__(self, raw: bytes) -> None:
        self._reader, self._whole, self.found = Reader(raw, _MOST_FIELDS), (0, len(raw)), Survey()

    def model(self) -> Survey:
        model = self._reader.fields(self._whole, _MODEL)
        if 7 not in model:
            raise WireError("has no graph")
        self._imports(model, 8)
        self._graph(_span(model[7][0]))
        for value in model.get(25, ()):
            self._function(_span(value))
        return self.found

    def _graph(self, span: Span) -> None:
        found, text = self.found, self._reader.text
        graph = self._reader.fields(span, _GRAPH)
        found.nodes.extend(self._node(_span(value)) for value in graph.get(1, ()))
        for value in graph.get(11, ()):
            found.inputs.append(text(self._reader.fields(_span(value), _VALUE).get(1)))
        for value in graph.get(5, ()):
            tensor = self._tensor(_span(value))
            if tensor.name in found.initializers or not tensor.name:
                raise WireError(f"has two initializers {tensor.name[:60]!r}, or one without a name")
            found.initializers[tensor.name] = tensor
        if both := found.initializers.keys() & set(found.inputs):
            raise WireError(f"has an initializer that is an input too ({min(both)[:60]!r})")

    def _function(self, span: Span) -> None:
        function = self._reader.fields(span, _FUNCTION)
        domain, name, overload = (self._reader.text(function.get(number)) for number in (10, 1, 13))
        if (domain, name, overload) in self.found.functions:
            raise WireError(f"has two functions {name[:60]!r}")
        self._imports(function, 9)
        nodes = [self._node(_span(value)) for value in function.get(7, ())]
        defaults, values = self._attributes(function, 11)
        inputs, outputs = self._names(function, 4), self._names(function, 5)
        self.found.functions[domain, name, overload] = Function(inputs, outputs, nodes, defaults, values)

    def _imports(self, message: Mapping[int, list[int | Span]], number: int) -> None:
        for value in message.get(number, ()):
            self.found.imports.add(self._reader.text(self._reader.fields(_span(value), _IMPORT).get(1)))

    def _node(self, span: Span) -> Node:
        node, text = self._reader.fields(span, _NODE), self._reader.text
        operator = text(node.get(7)), text(node.get(4))
        attributes, values = self._attributes(node, 5)
        inputs, outputs = self._names(node, 1), self._names(node, 2)
        return Node(operator, inputs, outputs, values, attributes, text(node.get(8)))

    def _names(self, message: Mapping[int, list[int | Span]], number: int) -> tuple[str, ...]:
        return tuple(self._reader.text([value]) for value in message.get(number, ()))

    def _attributes(
        self, message: Mapping[int, list[int | Span]], number: int
    ) -> tuple[dict[str, Attribute], int]:
        """All of them by name, and how many numbers they have, at most."""
        found: dict[str, Attribute] = {}
        values = 0
        for span in message.get(number, ()):
            attribute = self._reader.fields(_span(span), _ATTRIBUTE)
            name = self._reader.text(attribute.get(1))
            if name in found:
                raise WireError(f"has two attributes {name[:60]!r} in one place")
            [kind], said = attribute.get(20, [0]), attribute.keys() & _ATTRIBUTE_KINDS.keys()
            if len(said) > (21 not in attribute) or any(kind not in (0, _ATTRIBUTE_KINDS[n]) for n in said):
                raise WireError(f"says in two ways what the attribute {name[:60]!r} is")
            if 5 in attribute:
                tensor = self._tensor(_span(attribute[5][0]))
                if tensor.place is not None:
                    raise WireError("has a constant of a node in another file")
                self.found.constants.append(tensor)
                found[name], values = tensor, values + math.prod(tensor.shape)
                continue
            numbers = self._reader.numbers(attribute.get(8) or attribute.get(3))
            lists = [value for number in (7, 8) for value in attribute.get(number, ())]
            values += sum(value[1] - value[0] if isinstance(value, tuple) else 1 for value in lists) or 1
            found[name] = self._reader.text(attribute.get(21)) or tuple(numbers)
        return found, values

    def _tensor(self, span: Span) -> Tensor:
        tensor, reader = self._reader.fields(span, _TENSOR), self._reader
        name = reader.text(tensor.get(8))
        [kind] = tensor.get(2, [0])
        shape = tuple(reader.numbers(tensor.get(1)))
        assert isinstance(kind, int)
        if kind not in ITEM_BYTES or len(shape) > _MOST_AXES or any(size < 0 for size in shape):
            raise WireError(f"has a tensor of another type or shape than any model needs ({name[:60]!r})")
        [marked], entries = tensor.get(14, [0]), tensor.get(13, ())
        if marked not in (0, _EXTERNAL) or (marked == _EXTERNAL) != bool(entries):
            raise WireError(f"says in two ways where the tensor {name[:60]!r} stands")
        size, place, raw = math.prod(shape) * ITEM_BYTES[kind], None, b""
        if not entries:
            raw = reader.bytes(tensor[9][0]) if 9 in tensor else b""
            length = len(raw) if tensor.keys().isdisjoint(_TYPED) else size
        elif tensor.keys().isdisjoint((9, *_TYPED)):
            place = self._place(name, entries)
            length = place.length
        else:
            raise WireError(f"has the tensor {name[:60]!r} and also says that it stands elsewhere")
        if length != size:
            raise WireError(f"says that {name[:60]!r} has {length} bytes, which its shape does not give")
        return Tensor(name, kind, shape, place, raw)

    def _place(self, name: str, entries: list[int | Span] | tuple[()]) -> Place:
        said: dict[str, str] = {}
        for value in entries:
            entry = self._reader.fields(_span(value), _ENTRY)
            key = self._reader.text(entry.get(1))
            if key not in ("location", "offset", "length") or key in said:
                raise WireError(
                    f"says about the place of {name[:60]!r} what the exporter does not ({key[:20]!r})"
                )
            said[key] = self._reader.text(entry.get(2))
        try:
            offset, length = int(said["offset"]), int(said["length"])
            if (str(offset), str(length)) != (said["offset"], said["length"]) or min(offset, length) < 0:
                raise ValueError
            return Place(said["location"], offset, length)
        except (KeyError, ValueError):
            raise WireError(f"does not say plainly where the tensor {name[:60]!r} stands") from None


def _span(value: int | Span) -> Span:
    assert isinstance(value, tuple)
    return value
