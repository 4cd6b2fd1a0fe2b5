"""What ONNX Runtime would compute of constants alone while it loads a graph: followed by shape, before it may.

It folds constants, those inside a function's body too, in memory that nothing bounds, and keeps every step until
the last one is done. So all of it together may be no more than a few times what the weights take.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from paceline.runtime.bundle.survey import ITEM_BYTES, Attribute, Callee, Function, Node, Survey, Tensor
from paceline.runtime.bundle.wire import WireError

_TIMES, _AND = 20, 1 << 24
"""Bytes of all results together: so many times the constants of the file, and so many more. The bodies of products
reorder codes in steps that take up to 14 times the weights."""
_MOST_STEPS = 1 << 18
_FEW = 64
"""Numbers that are followed by value, as sizes are."""
_INT64 = 7
_LARGEST_ITEM = 8
_ELEMENTWISE = frozenset(
    "Abs Add And BitShift BitwiseAnd BitwiseOr Cast Clip Cos Div Exp Gelu Greater HardSwish Identity LeakyRelu Less"
    " Min Mish Mod Mul Pow Relu Round Sigmoid Sin Softmax Sub Tanh Where".split()
)
_COUNTS = {"Add": int.__add__, "Sub": int.__sub__, "Mul": int.__mul__, "Div": int.__floordiv__}


@dataclass(frozen=True, slots=True)
class Value:
    """A result of constants. shape: the largest that it can have, or (exact) has; None if only its count is known."""

    shape: tuple[int, ...] | None
    count: int
    item: int
    numbers: tuple[int, ...] | None = None
    exact: bool = True


_Known = dict[str, Value]
_Call = Mapping[str, Attribute]


def follow_constants(found: Survey, passes: int = 1) -> dict[str, Value]:
    """What is known of a graph's constants, and of all that follows from them alone, by name.

    passes: how often it goes through its weights; what a product makes of them is made anew each time. Raises WireError
    where all of it is far more than the weights are.
    """
    known = {name: _of_tensor(tensor) for name, tensor in found.initializers.items()}
    most = passes * _TIMES * sum(value.count * value.item for value in known.values()) + _AND
    _Folder(found.functions, most).fold(found.nodes, known, {})
    return known


class _Folder:
    def __init__(self, functions: Mapping[Callee, Function], left: int) -> None:
        self._functions, self._left, self._steps = functions, left, 0

    def fold(self, nodes: Iterable[Node], known: _Known, call: _Call, values: int = 1) -> None:
        """Add the results of nodes all of whose inputs are known. call, values: attributes of the function's call, and
        how many numbers they have.
        """
        for node in nodes:
            self._steps += 1
            if self._steps > _MOST_STEPS:
                raise WireError("makes more of its constants than any model needs")
            body = self._functions.get(node.callee)
            if body is not None:
                self._call(node, body, known)
            elif all(name in known for name in node.inputs if name):
                given = [known[name] for name in node.inputs if name]
                if not given and node.operator[1] != "Constant":
                    continue
                attributes = _Attributes(node.attributes, call)
                if node.operator[1] == "Constant":
                    result = _constant(attributes, max(node.values, values))
                else:
                    result = _result(node.operator[1], given, attributes)
                self._spend(result, len(node.outputs))
                known.update(dict.fromkeys(node.outputs, result))

    def _call(self, node: Node, body: Function, known: _Known) -> None:
        inner = {
            inside: known[name]
            for inside, name in zip(body.inputs, node.inputs, strict=False)
            if name in known
        }
        self.fold(body.nodes, inner, {**body.defaults, **node.attributes}, max(node.values, body.values))
        for outside, name in zip(node.outputs, body.outputs, strict=False):
            if name in inner:
                known[outside] = inner[name]

    def _spend(self, result: Value, outputs: int) -> None:
        self._left -= result.count * result.item * outputs
        if self._left < 0:
            raise WireError(
                f"makes {result.count} values of constants alone, in all far more than its weights are"
            )


class _Attributes:
    def __init__(self, own: _Call, call: _Call) -> None:
        self._own, self._call = own, call

    def get(self, name: str) -> tuple[int, ...] | Tensor | None:
        """The numbers or the tensor; None where there is none."""
        found = self._own.get(name)
        if isinstance(found, str):
            found = self._call.get(found)
        return None if isinstance(found, str) else found

    def numbers(self, name: str, *default: int) -> tuple[int, ...]:
        found = self.get(name)
        return found if isinstance(found, tuple) and found else default

    def axis(self, name: str, rank: int, default: int = 0) -> int:
        at = self.numbers(name, default)[0]
        if not -rank <= at < rank:
            raise WireError("has an axis that its constants have not")
        return at % rank


def _of_tensor(tensor: Tensor) -> Value:
    count, numbers = math.prod(tensor.shape), None
    if tensor.kind == _INT64 and count <= _FEW and len(tensor.raw) == 8 * count:
        numbers = struct.unpack(f"<{count}q", tensor.raw)
    return Value(tensor.shape, count, ITEM_BYTES[tensor.kind], numbers)


def _of_shape(
    shape: tuple[int, ...], item: int, numbers: tuple[int, ...] | None = None, exact: bool = True
) -> Value:
    return Value(shape, math.prod(shape), item, numbers, exact and 0 not in shape)


def _constant(attributes: _Attributes, values: int) -> Value:
    tensor = attributes.get("value")
    if isinstance(tensor, Tensor):
        return _of_tensor(tensor)
    for name in ("value_ints", "value_int"):
        if numbers := attributes.numbers(name):
            shape = () if name == "value_int" else (len(numbers),)
            return _of_shape(shape, 8, numbers if len(numbers) <= _FEW else None)
    return Value(None, values, 4)


def _result(name: str, given: list[Value], attributes: _Attributes) -> Value:
    """Of one operator; where its shape does not follow, the product of its inputs' counts, which none exceeds."""
    first, shape = given[0], given[0].shape
    item = max(value.item for value in given)
    if name == "Cast":
        kind = attributes.numbers("to", 0)[0]
        item, name = ITEM_BYTES.get(kind, 8), "Identity" if kind == _INT64 else name
    if name in ("Reshape", "Expand"):
        return _shaped(name, given)
    if name == "ConstantOfShape":
        if first.numbers is None or min(first.numbers, default=0) < 0:
            raise WireError("makes a constant of a shape that is none")
        return _of_shape(first.numbers, _LARGEST_ITEM)
    if name in ("Range", "Tile"):
        raise WireError(f"has a {name} of constants alone")
    if shape is not None and all(value.shape is not None for value in given):
        shapes, exact = [value.shape or () for value in given], all(value.exact for value in given)
        if name in _ELEMENTWISE:
            joint = _broadcast(shapes)
            return _of_shape(joint, item, _computed(name, given, math.prod(joint)), exact)
        if name == "Shape":
            part = shape[
                slice(*(attributes.numbers(end, d)[0] for end, d in (("start", 0), ("end", len(shape)))))
            ]
            return _of_shape((len(part),), 8, part if exact else None)
        if name == "Transpose":
            order = attributes.numbers("perm", *reversed(range(len(shape))))
            if sorted(order) != list(range(len(shape))):
                raise WireError("transposes a constant to an order that is none")
            return _of_shape(tuple(shape[axis] for axis in order), item, exact=exact)
        if name == "Concat" and len({len(s) for s in shapes}) == 1 and shape:
            axis = attributes.axis("axis", len(shape))
            joined = [max(sizes) for sizes in zip(*shapes, strict=True)]
            joined[axis] = sum(s[axis] for s in shapes)
            parts = [value.numbers for value in given if value.numbers is not None]
            known = len(parts) == len(given) and len(shape) == 1
            numbers = tuple(n for part in parts for n in part) if known else None
            return _of_shape(tuple(joined), item, numbers, exact)
        if name == "Split" and shape:
            axis = attributes.axis("axis", len(shape))
            sizes = _pieces(shape[axis], given[1:], attributes)
            cut = (*shape[:axis], max(sizes), *shape[axis + 1 :])
            return _of_shape(cut, first.item, exact=exact and len(set(sizes)) == 1)
        if name == "Slice":
            return _of_shape(shape, first.item, exact=False)
        if name == "Unsqueeze" and len(given) == 2 and (axes := given[1].numbers) is not None:
            widened = list(shape)
            for at in sorted(axis % (len(shape) + len(axes)) for axis in axes):
                widened.insert(at, 1)
            return _of_shape(tuple(widened), first.item, first.numbers, exact)
    if name in ("Squeeze", "Slice", "Split", "Transpose", "ReduceMean", "ReduceMax"):
        return Value(None, first.count, item)
    return Value(None, math.prod(max(value.count, 1) for value in given), item)


def _pieces(size: int, given: list[Value], attributes: _Attributes) -> tuple[int, ...]:
    """How an axis of this size is cut; two unequal sizes where that is not known."""
    if given:
        numbers = given[0].numbers or ()
        return numbers if sum(numbers) == size and min(numbers, default=-1) >= 0 else (size, 0)
    pieces = attributes.numbers("num_outputs", 1)[0]
    return (size // pieces,) if pieces > 0 and size % pieces == 0 else (size, 0)


def _shaped(name: str, given: list[Value]) -> Value:
    first = given[0]
    sizes = given[1].numbers if len(given) == 2 else None
    if sizes is None:
        if name == "Expand":
            raise WireError("expands a constant to a shape that is none")
        return Value(None, first.count, first.item)
    if name == "Expand":
        if first.shape is None or any(size < 0 for size in sizes):
            raise WireError("expands a constant to a shape that is none")
        return _of_shape(_broadcast([first.shape, sizes]), first.item, exact=first.exact)
    kept = first.shape or ()
    shape = [kept[at] if size == 0 and at < len(kept) else abs(size) for at, size in enumerate(sizes)]
    if -1 in sizes:
        shape[sizes.index(-1)] = -(-first.count // max(math.prod(shape), 1))
    exact = first.exact and math.prod(shape) == first.count
    return _of_shape(tuple(shape), first.item, first.numbers, exact)


def _broadcast(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    rank = max(map(len, shapes))
    return tuple(max(sizes) for sizes in zip(*((1,) * (rank - len(s)) + s for s in shapes), strict=True))


def _computed(name: str, given: list[Value], count: int) -> tuple[int, ...] | None:
    """Values of sizes that are computed from others."""
    if name == "Identity":
        return given[0].numbers
    work, numbers = _COUNTS.get(name), [value.numbers or () for value in given]
    if work is None or [len(n) for n in numbers] != [count, count]:
        return None
    if name == "Div" and (min(*numbers[0], 0) < 0 or min(numbers[1]) < 1):
        return None
    found = tuple(work(a, b) for a, b in zip(*numbers, strict=True))
    return found if all(-(2**63) <= n < 2**63 for n in found) else None
