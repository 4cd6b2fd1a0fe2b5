"""Which graphs ONNX Runtime may see: only such as the exporter writes, over the weights that the manifest lists.

ONNX Runtime trusts a graph that it is given: some operators load programs, loop without end or fill the memory, and a
weight that is handed over under another type than the graph's makes it write past the end of a buffer.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath

from paceline.runtime.bundle.constants import follow_constants
from paceline.runtime.bundle.survey import LARGEST, Callee, Node, Operator, Survey, survey
from paceline.runtime.bundle.wire import WireError
from paceline.runtime.manifest import BundleError, Dtype, Part
from paceline.runtime.part import WINDOW
from paceline.runtime.split import IDS

OURS = "paceline"
_FOREIGN = "com.microsoft"
_KINDS: dict[Dtype, int] = {"float32": 1, "uint8": 2, "int8": 3, "float16": 10, "bfloat16": 16}
"""ONNX's numbers of the types that a table of weights knows."""
_INT64 = 7
_NUMBER = re.compile("[0-9]{1,4}").fullmatch
_MOST_NODES = 128
"""For each layer, and as many around them: without any fusion a layer has some 40. A head that drafts has them for each
level."""
_PER_ROW = tuple((name,) for name in ("token_ids", "positions", "rows"))
"""Inputs of a graph that have one number for each row."""


def _named(names: str) -> frozenset[Operator]:
    """Operators of ONNX; `domain:name` is one of that domain."""
    pairs = (name.rpartition(":") for name in names.split())
    return frozenset((domain, name) for domain, _, name in pairs)


GRAPH_OPERATORS = _named(
    "Add Cast Concat Cos Div Gather Gelu LayerNormalization MatMul Mul Pow RMSNormalization ReduceMean Reshape"
    " RotaryEmbedding Sigmoid SimplifiedLayerNormalization Sin Slice Split Squeeze Sub Tanh Transpose Unsqueeze"
    " com.microsoft:MatMulNBits"
    " paceline:NormQMatMul paceline:NormQMatMulGlu paceline:QEmbedding paceline:QMatMul paceline:QMatMulAdd"
    " paceline:QMatMulGlu paceline:RotaryTreeAttention paceline:TreeAttention"
    # Activations of models that have neither SiLU nor GELU.
    " Clip Exp Greater HardSwish LeakyRelu Min Mish Relu Where"
    # Cohere repeats each angle; a graph that was not captured may make rows. `_check_expansions` has more about it.
    " Expand Shape"
    # A head takes the best token of a level, or the best few of several laws.
    " ArgMax LogSoftmax TopK"
)
"""What the nodes of a graph may be."""
STATIC_OPERATORS = _named("SimplifiedLayerNormalization Softmax")
"""What they may be besides in a part that has static graphs, which have attention without a function."""
TRAINING_OPERATORS = GRAPH_OPERATORS | _named(
    "Abs ConstantOfShape Equal Erf GatherElements GreaterOrEqual Log Neg Reciprocal ReduceMax ReduceSum"
    " ScatterElements ScatterND Sign Softmax Sqrt"
)
"""What the nodes of a training step may be besides: gradients, and the optimiser."""
_TRAINING_TIMES = 4
"""So many times the nodes of a pass: its own, its gradient's and the optimiser's."""

_ATTENTION = _named(
    "Abs Add And Cast Concat Constant Div Greater Identity Less MatMul Mul Range ReduceMax Reshape Round Shape Slice"
    " Softmax Split Squeeze Sub Tanh Tile Transpose Unsqueeze Where"
)
_PRODUCT = _named(
    "Add BitShift BitwiseAnd BitwiseOr Cast Concat Constant Div Expand MatMul Mul ReduceSum Reshape Shape Slice Split"
    " Sub Transpose com.microsoft:MatMulNBits"
)
_GATED = _PRODUCT | _named("Gelu Sigmoid")
BODY_OPERATORS: dict[str, frozenset[Operator]] = {
    "TreeAttention": _ATTENTION,
    "RotaryTreeAttention": _ATTENTION | _named("RMSNormalization RotaryEmbedding"),
    "QEmbedding": _named(
        "Add BitShift BitwiseAnd BitwiseOr Cast Concat Constant Div Gather GatherND Identity Mod Mul Reshape Shape"
        " Slice Split Sub Transpose Unsqueeze"
    ),
    "QMatMul": _PRODUCT,
    "QMatMulAdd": _PRODUCT,
    "QMatMulGlu": _GATED,
    "NormQMatMul": _PRODUCT | _named("RMSNormalization"),
    "NormQMatMulGlu": _GATED | _named("RMSNormalization"),
}
"""What the nodes of a function may be, by its name; there are no others."""


def admit(raw: bytes, part: Part, path: Path) -> None:
    """Check the bytes of one of a part's graphs, read from `path`, before ONNX Runtime gets them.

    Raises BundleError with one line where they are no graph, hold what the exporter never writes, take data from
    another file than the part's, or have other weights than the manifest lists.
    """
    try:
        found = survey(raw)
        trains = part.trains(path.name)
        times = _TRAINING_TIMES if trains else part.levels_of(path.name)
        known = TRAINING_OPERATORS if trains else GRAPH_OPERATORS
        known |= frozenset() if part.static is None else STATIC_OPERATORS
        _check_operators(found, part.layers, times, known)
        _check_expansions(found, part, WINDOW if trains else 1)
        follow_constants(found, times if part.kind == "head" else 1)
        _check_data(found, [PurePosixPath(file).name for file in part.stores])
        _check_table(found, part, whole=not part.has_static(path.name))
        _check_named(found, part.vocab)
    except WireError as error:
        raise BundleError(
            f"{path} {error}: paceline writes no such graph; fetch or export the bundle again, or do not use it"
        ) from None


def read_graph(path: Path) -> bytes:
    """The content of a graph file, no more than `admit` takes. Raises BundleError."""
    try:
        with path.open("rb") as file:
            return file.read(LARGEST + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): check its permissions") from None


def _check_operators(found: Survey, layers: int, levels: int, known: frozenset[Operator]) -> None:
    if strange := found.imports - {"", OURS, _FOREIGN}:
        raise WireError(f"has operators of {min(strange)[:60]!r}")
    if len(found.nodes) > _MOST_NODES * (layers + 1) * levels:
        times = f", {levels} times" if levels > 1 else ""
        raise WireError(f"has {len(found.nodes)} nodes, too many for {layers} layers{times}")
    _only(found.nodes, known, "operator")
    _have_bodies(found.nodes, found.functions)
    for (domain, name, _), body in found.functions.items():
        if domain != OURS or name not in BODY_OPERATORS:
            raise WireError(f"has the function {f'{domain}::{name}'[:60]!r}")
        _only(body.nodes, BODY_OPERATORS[name], f"operator in {name}")
        _have_bodies(body.nodes, {})


def _have_bodies(nodes: Iterable[Node], functions: Collection[Callee]) -> None:
    """An overload is a number, and says which function is the body of a node."""
    for node in nodes:
        if node.overload and (node.callee not in functions or not _NUMBER(node.overload)):
            raise WireError(
                f"has the overload {node.overload[:20]!r} of {node.operator[1][:60]!r}, which it does not define"
            )


def _only(nodes: Iterable[Node], listed: frozenset[Operator], what: str) -> None:
    for node in nodes:
        if node.operator not in listed:
            domain, name = node.operator
            raise WireError(f"has the {what} {(f'{domain}::{name}' if domain else name)[:60]!r}")


def _check_expansions(found: Survey, part: Part, rows: int) -> None:
    """A graph repeats values for so many rows of outputs at most, and once for each new row: so no node fills the
    memory."""
    widest = rows * max(part.vocab, part.hidden, part.kv_heads * part.head_dim)
    makers = {name: node for node in found.nodes for name in node.outputs}
    for node in found.nodes:
        if node.operator == ("", "ConstantOfShape") and math.prod(_sizes(found, node.inputs[0])) > widest:
            raise WireError("makes more values than any output has")
        if node.operator == ("", "Expand"):
            shape = node.inputs[1] if len(node.inputs) == 2 else ""
            maker = makers.get(shape)
            parts = maker.inputs if maker is not None and maker.operator == ("", "Concat") else (shape,)
            counted = [makers[name] for name in parts if name in makers]
            if len(counted) > 1 or any(
                n.operator != ("", "Shape") or n.inputs not in _PER_ROW for n in counted
            ):
                raise WireError("expands to a shape that is neither constant nor one row for each token")
            sizes = [size for name in parts if name not in makers for size in _sizes(found, name)]
            if not 0 < math.prod(sizes) <= widest:
                raise WireError("expands to rows of more values than any output has")


def _sizes(found: Survey, name: str) -> tuple[int, ...]:
    """The numbers of a small constant that stands in the file."""
    tensor = found.initializers.get(name)
    if tensor is None or tensor.kind != _INT64 or not 0 < len(tensor.raw) <= 64 or len(tensor.raw) % 8:
        raise WireError("expands to a shape that is no small constant")
    sizes: tuple[int, ...] = struct.unpack(f"<{len(tensor.raw) // 8}q", tensor.raw)
    return tuple(max(size, 0) for size in sizes)


def _check_data(found: Survey, files: Sequence[str]) -> None:
    for tensor in found.initializers.values():
        if tensor.place is not None and tensor.place.location not in files:
            raise WireError(f"has data in {tensor.place.location[:60]!r} and not in {' or '.join(files)!r}")


def _check_named(found: Survey, vocab: int) -> None:
    """Where an exit has a vocabulary of its own, that is a list of the target's tokens."""
    for node in found.nodes:
        if node.operator == ("", "Gather") and IDS in node.outputs:
            table = found.initializers.get("".join(node.inputs[:1]))
            if table is None or table.kind != _INT64 or len(table.raw) != 8 * math.prod(table.shape):
                raise WireError("names tokens by a list that does not stand in the file")
            ids = [number for (number,) in struct.iter_unpack("<q", table.raw)]
            if ids != sorted({*ids}) or not ids or not 0 <= ids[0] <= ids[-1] < vocab:
                raise WireError(f"names tokens by a list that is not one of ascending ids below {vocab}")


def _check_table(found: Survey, part: Part, whole: bool) -> None:
    """Every entry says of its weight what the graph says. whole: the graph has all of them."""
    for name, weight in part.weights.items():
        tensor = found.initializers.get(name)
        if tensor is None and not whole:
            continue
        if tensor is None or tensor.place is None:
            raise WireError(f"has no weight {name[:60]!r} in another file, which the manifest lists")
        here = tensor.kind, list(tensor.shape), tensor.place.offset, tensor.place.length
        if here != (_KINDS[weight.dtype], weight.shape, weight.offset, weight.bytes):
            raise WireError(f"has another type, shape or place of the weight {name[:60]!r} than the manifest")
