"""Products of one input whose matrices are stored in unlike formats: each format is a product of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from paceline.export.passes import Floats, Joined, bias_of, constant_of, floats_of, joined, put_product, sizes
from paceline.export.pieces import pieces_of
from paceline.export.quantize import Quantised

Choose = Callable[[str, Floats], Quantised | None]
"""Says how a matrix is stored: its name and float32[K, N] to codes, or None for floats.

The name is the parameter's, as in `model.layers.3.self_attn.q_proj.weight`. A head that is a table transposed has the
name of the head.
"""

_LIFTED = re.compile(r"\.lifted_tensor_\d+")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A matrix of the graph, a constant [K, N], its codes, or None for floats, and what it is called."""

    weight: ir.Value
    codes: Quantised | None
    title: str


def parameter_of(name: str) -> str:
    """The parameter that a constant of a captured graph is, by the constant's name."""
    return _LIFTED.sub(".weight", name.removeprefix("model.").removesuffix(".T"))


def choose_each(graph: ir.Graph, weight: ir.Value, choose: Choose) -> list[Chosen]:
    """Ask for every matrix that a weight was joined of; neighbours of one format stay together."""
    tensor = weight.const_value
    if not isinstance(tensor, Joined):
        name = parameter_of(str(weight.name))
        return [Chosen(weight, choose(name, floats_of(weight)), name)]
    names = [parameter_of(name) for name, _ in tensor.parts]
    values = [part.numpy() for _, part in tensor.parts]
    codes = [choose(*each) for each in zip(names, values, strict=True)]
    edges = [0, *(i for i in range(1, len(codes)) if _form(codes[i]) != _form(codes[i - 1])), len(codes)]
    found = []
    for start, stop in pairwise(edges):
        parts = tensor.parts[start:stop]
        value = weight if len(edges) == 2 else joined(graph, f"{parts[0][0]}.apart", parts)
        together = _together(codes[start:stop], values[start:stop])
        found.append(Chosen(value, together, ", ".join(names[start:stop])))
    return found


def _form(codes: Quantised | None) -> tuple[object, ...]:
    if codes is None:
        return ()
    return codes.bits, codes.block, codes.minima is None, codes.scales.dtype, codes.exact


def _together(codes: list[Quantised | None], values: list[Floats]) -> Quantised | None:
    """Codes of matrices of one format side by side."""
    given = [one for one in codes if one is not None]
    if len(given) < 2:
        return codes[0]
    sizes_of = [float(np.vdot(some, some)) for some in values]
    lost = sum(one.error**2 * size for one, size in zip(given, sizes_of, strict=True))
    minima = [one.minima for one in given if one.minima is not None]
    return replace(
        given[0],
        codes=np.concatenate([one.codes for one in given]),
        scales=np.concatenate([one.scales for one in given]),
        minima=np.concatenate(minima) if minima else None,
        error=float(np.sqrt(lost / sum(sizes_of))) if sum(sizes_of) else 0.0,
    )


def put_apart(graph: ir.Graph, node: ir.Node, weights: list[ir.Value]) -> None:
    """Put a product by each of these matrices, and a Concat, in the place of the product by all of them together."""
    bias = bias_of(node)
    last = bias[0] if bias else node
    out, start = last.outputs[0], 0
    results = []
    for number, weight in enumerate(weights):
        width = sizes(weight)[1]
        row = None
        if bias is not None:
            piece = floats_of(bias[1])[start : start + width]
            row = constant_of(graph, f"{bias[1].name}.{number}.apart", np.array(piece))
        shape = None if out.shape is None else ir.Shape([*out.shape.dims[:-1], width])
        like = ir.val(f"{out.name}.{number}", ir.DataType.FLOAT, shape)
        results.append(put_product(graph, last, node.inputs[0], weight, row, like))
        start += width
    concat = ir.node("Concat", results, {"axis": -1})
    whole = concat.outputs[0]
    whole.type, whole.shape, whole.name = out.type, out.shape, out.name
    graph.insert_before(last, concat)
    out.replace_all_uses_with(whole, replace_graph_outputs=True)
    graph.remove([last, node] if bias else [node], safe=True)


def drop_cuts(graph: ir.Graph) -> None:
    """Where values are put together along their last axis only to be cut again, cut each of them by itself."""
    for concat in [n for n in graph if n.op_type == "Concat" and n.domain == ""]:
        if (axis := concat.attributes.get("axis")) is None or axis.as_int() != -1:
            continue
        parts = [(value, _width(value)) for value in concat.inputs if value is not None]
        if all(width and value.producer() is not None for value, width in parts):
            _cut_each(graph, concat, parts)


def _cut_each(graph: ir.Graph, concat: ir.Node, parts: list[tuple[ir.Value, int]]) -> None:
    whole = concat.outputs[0]
    pieces = pieces_of(whole, sum(width for _, width in parts))
    if not pieces or any(piece.value.is_graph_output() for piece in pieces):
        return
    cuts, start = [], 0
    for value, width in parts:
        inside = [p for p in pieces if start <= p.start and p.stop <= start + width]
        if sum(p.stop - p.start for p in inside) != width:
            return
        cuts.append((value, inside))
        start += width
    readers = list(dict.fromkeys(use.node for use in whole.uses()))
    for value, inside in cuts:
        outs = [value]
        if len(inside) > 1:
            widths = np.array([p.stop - p.start for p in inside], np.int64)
            split = ir.node(
                "Split",
                [value, constant_of(graph, f"{value.name}.widths", widths)],
                {"axis": -1},
                num_outputs=len(inside),
            )
            graph.insert_before(readers[0], split)
            outs = list(split.outputs)
        for piece, out in zip(inside, outs, strict=True):
            if out is not value:
                out.name, out.type, out.shape = piece.value.name, piece.value.type, piece.value.shape
            piece.value.replace_all_uses_with(out)
    graph.remove([*readers, concat], safe=True)


def _width(value: ir.Value) -> int:
    last = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return last if isinstance(last, int) else 0
