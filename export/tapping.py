"""Taps for a graph that is finished: where a layer ends is found by how values flow, not by names or architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from paceline.export.check import part_logits
from paceline.export.errors import ExportError
from paceline.export.fuse import EPSILON, operand
from paceline.export.order import check_taps
from paceline.export.passes import Floats
from paceline.export.static.dropping import drop_static
from paceline.memory.cache import CacheFormat
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.manifest import Part
from paceline.runtime.ops import packed_matmul as matmul
from paceline.runtime.ops import tree_attention as attention

_NORMS = ("RMSNormalization", "SimplifiedLayerNormalization", "LayerNormalization")
_VIEWS = ("Squeeze", "Unsqueeze", "Reshape", "Identity")
_FORMS: tuple[CacheFormat, ...] = ("fp32", "fp16", "int8")
_SUMS = ("Add", "QMatMulAdd")
_JOINED = 1e-3
"""Of the largest logit: 1e-6 in random models; where activations are rounded a last bit can become a step."""
_TRIED = 48
"""Tokens whose logits are compared before and after."""


def add_taps(folder: Path, target: Part, taps: Sequence[str], ids: Sequence[int]) -> Part:
    """Let every graph of a finished target give these taps too, and return the new part, without static graphs.

    folder: of the bundle; its graph files are replaced by others, not written to. ids: token ids of a text, on which
    the logits over every form of the cache must stay what they were: bit for bit but for models with LayerNorm, whose
    nodes ONNX Runtime joins otherwise where one of them has an output more, with or without this. Raises ExportError,
    one line with the remedy, for a tap that there is not, or that is not found, and for a target in two graphs.
    """
    check_taps(taps, target.layers)
    new = [tap for tap in dict.fromkeys(taps) if tap not in target.taps]
    if not new:
        return target
    if target.split is not None:
        raise ExportError(
            f"the model of this bundle is in two graphs, which come last and would not give {', '.join(new)}: take the "
            "bundle that --split was given, then split what comes of it"
        )
    part = msgspec.structs.replace(target, taps=[*target.taps, *new])
    ids = [min(number, target.vocab - 1) for number in ids[: min(_TRIED, target.context)]]
    before = logits_by_form(folder, target, ids)
    for path in (target.graph, *target.caches.values()):
        model = ir.load(folder / path)
        for tap in new:
            if (why := tap_graph(model.graph, part, tap)) is not None:
                raise _refusal(f"{path}: {why}", part)
        write_atomically(folder / path, ir.to_proto(model).SerializeToString(), private=False)
    part = drop_static(part, folder)
    for form, after in logits_by_form(folder, part, ids).items():
        if not same_logits(before[form], after):
            raise _refusal(f"taps would change the logits over a cache of {form}", part)
    return part


def check_unadapted(target: Part, bundle: Path) -> None:
    """Raise ExportError for a target with adapters: what else is made of its graph would lack these."""
    if target.adapters:
        raise ExportError(
            f"the model of {bundle} has adapters, which come last: take the bundle that --adapt was given, then give "
            "what comes of this one adapters again"
        )


def same_logits(before: Floats, after: Floats) -> bool:
    """Bit for bit, or as near as ONNX Runtime's joining of nodes leaves them."""
    return np.array_equal(before, after) or bool(
        np.abs(after - before).max() <= _JOINED * np.abs(before).max()
    )


def _refusal(why: str, part: Part) -> ExportError:
    return ExportError(
        f"{why}: export the model that the bundle was made of again, with --taps {','.join(part.taps)}"
    )


def logits_by_form(folder: Path, part: Part, ids: Sequence[int]) -> Mapping[CacheFormat, Floats]:
    """Logits [T, V] of a text over every form of the cache."""
    forms = [form for form in _FORMS if form == "fp32" or form in part.caches]
    return {form: part_logits(folder, part, len(ids), form)(ids) for form in forms}


def tap_graph(graph: ir.Graph, part: Part, tap: str) -> str | None:
    """Give a finished graph one output more; what was not found, in words, and then the graph is as it was."""
    norm, gather = _final_norm(graph)
    if tap == "hidden":
        found = _normed(graph, norm, gather)
        if found is None:
            return "its final norm was not found"
    else:
        number = int(tap.partition(".")[2])
        last = number == part.layers - 1
        found = _state(graph, norm, gather) if last else _layer_end(graph, number)
        if found is None:
            return f"the end of layer {number} was not found"
    return _give_out(graph, found, tap, part)


def _give_out(graph: ir.Graph, value: ir.Value, tap: str, part: Part) -> str | None:
    """Make a value an output [T, H] of this name, behind the logits and the taps that there are."""
    shape = None if value.shape is None else list(value.shape)
    if shape is None or len(shape) not in (2, 3) or shape[-1] != part.hidden:
        return f"{tap} is not a row of {part.hidden} numbers for each token"
    if len(shape) == 3:
        squeeze = ir.node("Squeeze", [value, _axis(graph)])
        maker = value.producer()
        assert maker is not None
        graph.insert_after(maker, squeeze)
        value = squeeze.outputs[0]
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(shape[1:])
    elif value.is_graph_output():
        return f"{tap} is {value.name}"
    value.name = tap
    given = sum(
        1 for output in graph.outputs if output.name == "logits" or str(output.name).startswith("hidden")
    )
    graph.outputs.insert(given, value)
    return None


def _axis(graph: ir.Graph) -> ir.Value:
    """The constant [0]."""
    name = "tap.axis"
    if name not in graph.initializers:
        tensor = ir.tensor(np.array([0], np.int64), name=name)
        graph.register_initializer(ir.val(name, tensor.dtype, ir.Shape([1]), const_value=tensor))
    return graph.initializers[name]


def _layer_end(graph: ir.Graph, number: int) -> ir.Value | None:
    """The residual stream between two layers: the last value before the attention of the next one that all paths pass.

    A pass is a path from this layer's attention to the logits. Inside a layer the stream and what is added to it go
    side by side, so that only what stands between blocks is passed by all.
    """
    here, there = _attention(graph, number), _attention(graph, number + 1)
    if here is None or there is None:
        return None
    later = set(_downstream(graph, there.outputs[0]))
    waists = [value for value in _waists(graph, here.outputs[0]) if value.producer() not in later]
    waists = [value for value in waists if value.producer() is not there]
    return waists[-1] if waists else None


def _attention(graph: ir.Graph, number: int) -> ir.Node | None:
    """The node that reads the cache of a layer."""
    cache = next((value for value in graph.inputs if value.name == f"cache_k.{number}"), None)
    readers = [] if cache is None else [use.node for use in cache.uses()]
    names = (attention.NAME, attention.ROTARY_NAME)
    return readers[0] if len(readers) == 1 and readers[0].op_type in names else None


def _downstream(graph: ir.Graph, value: ir.Value) -> Iterator[ir.Node]:
    """All nodes that what this value says reaches, in the order in which they run."""
    reached = {value}
    for node in graph:
        if not reached.isdisjoint(v for v in node.inputs if v is not None):
            reached.update(node.outputs)
            yield node


def _waists(graph: ir.Graph, start: ir.Value) -> list[ir.Value]:
    """The values that every path from `start` to the logits passes, in order."""
    wanted: set[ir.Value] = {value for value in graph.outputs if value.name == "logits"}
    for node in reversed(list(graph)):
        if not wanted.isdisjoint(node.outputs):
            wanted.update(value for value in node.inputs if value is not None)
    between = [node for node in _downstream(graph, start) if not wanted.isdisjoint(node.outputs)]
    readers: dict[ir.Value, int] = {}
    for node in between:
        for value in {value for value in node.inputs if value is not None}:
            readers[value] = readers.get(value, 0) + 1
    found, waiting = list[ir.Value](), {start}
    for node in between:
        for value in {value for value in node.inputs if value is not None}:
            readers[value] -= 1
            if readers[value] == 0:
                waiting.discard(value)
        waiting.update(value for value in node.outputs if value in wanted)
        if len(waiting) == 1:
            found.extend(waiting)
    return found


def _final_norm(graph: ir.Graph) -> tuple[ir.Node | None, ir.Node | None]:
    """The norm before the head, and the Gather of the rows that it is given, which stands before or behind the norm."""
    value = next((value for value in graph.inputs if value.name == "rows"), None)
    while value is not None and len(value.uses()) == 1:
        node = next(iter(value.uses())).node
        if node.op_type == "Gather":
            break
        value = node.outputs[0] if node.op_type in _VIEWS else None
    else:
        return None, None
    if value is None:
        return None, None
    behind = {use.node for use in node.outputs[0].uses()}
    if norm := next((reader for reader in behind if _is_norm(reader)), None):
        return (norm if len(behind) == 1 else None), node
    before = _unviewed(node.inputs[0])
    maker = None if before is None else before.producer()
    return (maker if maker is not None and _is_norm(maker) else None), node


def _is_norm(node: ir.Node) -> bool:
    return node.op_type in _NORMS or "norm" in matmul.PRODUCTS.get(node.op_type, ())


def _unviewed(value: ir.Value | None) -> ir.Value | None:
    """The value of which this one is another shape."""
    while value is not None and (maker := value.producer()) is not None and maker.op_type in _VIEWS:
        value = maker.inputs[0]
    return value


def _state(graph: ir.Graph, norm: ir.Node | None, gather: ir.Node | None) -> ir.Value | None:
    """What the final norm reads, of all rows: the sum at the end of the last layer.

    A norm of several nodes would pass for one of them, whose input is no sum: then nothing is found.
    """
    if norm is None or gather is None:
        return None
    x = norm.inputs[0]
    state = gather.inputs[0] if x is gather.outputs[0] else x
    whole = _unviewed(state)
    maker = None if whole is None else whole.producer()
    return state if maker is not None and maker.op_type in _SUMS else None


def _normed(graph: ir.Graph, norm: ir.Node | None, gather: ir.Node | None) -> ir.Value | None:
    """What the final norm makes of all rows: what the rows are taken from, or what a second norm makes.

    The norm that the logits come from, of the rows that are asked for, stays, so that no bit of them changes.
    """
    if norm is None or gather is None:
        return None
    if norm.inputs[0] is not gather.outputs[0]:
        return gather.inputs[0]
    state = gather.inputs[0]
    assert state is not None
    weight = norm.inputs[1] if norm.op_type in _NORMS else operand(norm, "norm")
    epsilon = norm.attributes.get("epsilon")
    made = ir.node(
        norm.op_type if norm.domain == "" else "RMSNormalization",
        [state, weight],
        {"axis": -1, "epsilon": epsilon.as_float() if epsilon else EPSILON},
    )
    out = made.outputs[0]
    out.name, out.dtype, out.shape = "hidden.rows", ir.DataType.FLOAT, state.shape
    graph.insert_before(gather, made)
    return out
