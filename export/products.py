"""Products with constant matrices as a bundle stores them: our packed operators, or what every ONNX Runtime has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from paceline.export.mixing import Choose, Chosen, choose_each, parameter_of, put_apart
from paceline.export.narrow import STORED, fits, narrow_kind, same, tables
from paceline.export.nbits import nbits_attributes, nbits_codes, nbits_form
from paceline.export.pack import Packed, pack, pack_floats, tiles_of
from paceline.export.passes import Floats, constant_of, floats_of, matmuls, sizes
from paceline.export.quantize import Quantised, quantise
from paceline.runtime.ops import packed_matmul as contract

_ROUNDED, _EXACT = 8, 32
"""Bits of the inputs of a product."""
_COLUMN = 32
"""A scale for a column is one for as many rows as it has, and as are missing to a multiple of this."""

Made = Callable[[str, Floats, Quantised, Packed | None], None]
"""Sees every quantised matrix before its float32 form is dropped: name, weight, codes, packed form if it has one."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """How a matrix stands in the graph: the operands behind x, and the node that reads them."""

    operands: list[ir.Value | None]
    op: str
    domain: str
    attributes: dict[str, int]


def store_matmuls(
    model: ir.Model, dtype: str, choose: Choose, made: Made, *, packed: bool, table: Choose | None = None
) -> dict[str, float]:
    """Turn every MatMul by a constant matrix into one by what `choose` makes of it; the error of each by weight name.

    With `packed` they become QMatMul, and a table that is the matrix transposed is read from it by QEmbedding, as is
    one of its own that `table` makes codes of, [K, vocabulary]. Floats are then stored in the 16 bits of the
    checkpoint's dtype where every value survives, else in 32; without `packed` they stay MatMul. Codes whose scales do
    not fit half precision, and all without `packed`, become MatMulNBits, 5 and 6 bits as 8; those with minima, which it
    does not have, are stored as floats. Of products that were joined, those of unlike formats are taken apart again.
    """
    graph = model.graph
    ties = _ties(graph) if packed else {}
    errors: dict[str, float] = {}

    def store(chosen: Chosen) -> _Stored | None:
        values, quantised, fitting = floats_of(chosen.weight), chosen.codes, None
        if quantised is not None and packed and quantised.scales.dtype == np.float16:
            fitting = pack(quantised)
        elif quantised is not None:
            quantised = nbits_form(quantised)
        if quantised is None:
            return _floats(graph, chosen.weight, narrow_kind(dtype)) if packed else None
        made(chosen.title, values, quantised, fitting)
        errors[chosen.title] = quantised.error
        name = str(chosen.weight.name)
        if fitting is None:
            return _portable(graph, name, quantised)
        return _codes(graph, name, fitting, exact=quantised.exact)

    for weight in list(dict.fromkeys(node.inputs[1] for node in matmuls(graph))):
        assert weight is not None
        choices = choose_each(graph, weight, choose)
        if len(choices) > 1:
            for node in _products_by(weight):
                put_apart(graph, node, [chosen.weight for chosen in choices])
        for chosen in choices:
            stored = store(chosen)
            if stored is not None:
                model.opset_imports[stored.domain] = 1
                for node in _products_by(chosen.weight):
                    _replace(graph, node, stored)
                for gather in ties.get(weight, []) if stored.domain == contract.DOMAIN else []:
                    _embed(graph, gather, stored)
    if table is not None and packed:
        for value in tables(graph):
            _store_table(graph, value, table, made, errors)
    for value in list(graph.initializers.values()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[str(value.name)]
    return errors


def _store_table(
    graph: ir.Graph, table: ir.Value, choose: Choose, made: Made, errors: dict[str, float]
) -> None:
    """Give a table that rows are read from the codes that are chosen for it, if any are and their scales fit."""
    name, values, gathers = parameter_of(str(table.name)), floats_of(table).T, _gathers(table)
    quantised = choose(name, values) if gathers else None
    if quantised is None or quantised.scales.dtype != np.float16:
        return
    fitting = pack(quantised)
    made(name, values, quantised, fitting)
    errors[name] = quantised.error
    stored = _codes(graph, str(table.name), fitting)
    for gather in gathers:
        _embed(graph, gather, stored)


def rounding(bits: int, block: int | None, *, gridded: bool = False) -> Choose:
    """Rounds all matrices alike. block: rows of a column that share a scale; None is a scale per column."""

    def choose(_name: str, values: Floats) -> Quantised:
        return quantise(values, bits, block or contract.padded(len(values), _COLUMN), gridded=gridded)

    return choose


def as_floats(_name: str, _values: Floats) -> None:
    """Rounds nothing."""


def packed_attributes(bits: int, block: int, k: int, n: int, *, exact: bool = False) -> dict[str, int]:
    """Attributes of a QMatMul node. exact: it takes x as it is."""
    activations = _EXACT if exact else _ROUNDED
    return {"K": k, "N": n, "bits": bits, "block_size": block, "activation_bits": activations}


def _products_by(weight: ir.Value) -> list[ir.Node]:
    return [use.node for use in weight.uses() if use.node.op_type == "MatMul" and use.idx == 1]


def _replace(graph: ir.Graph, node: ir.Node, stored: _Stored) -> None:
    inputs = [node.inputs[0], *stored.operands]
    put(graph, node, ir.node(stored.op, inputs, stored.attributes, domain=stored.domain, name=node.name))


def _embed(graph: ir.Graph, gather: ir.Node, stored: _Stored) -> None:
    attributes = {name: stored.attributes[name] for name in contract.ATTRIBUTES}
    inputs = [gather.inputs[1], *stored.operands]
    new = ir.node(contract.EMBEDDING, inputs, attributes, domain=contract.DOMAIN, name=gather.name)
    put(graph, gather, new)


def put(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put a node with one output in the place of another."""
    before, after = old.outputs[0], new.outputs[0]
    after.type, after.shape, after.name = before.type, before.shape, before.name
    graph.insert_before(old, new)
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(old, safe=True)


def _ties(graph: ir.Graph) -> dict[ir.Value, list[ir.Node]]:
    """Matrices that are an embedding table transposed, with the Gather nodes that read the table."""
    found: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    weights = list(dict.fromkeys(v for n in matmuls(graph) if (v := n.inputs[1]) is not None))
    for table in tables(graph):
        alike = [w for w in weights if sizes(w)[::-1] == sizes(table)]
        match = next((w for w in alike if same(floats_of(table), floats_of(w).T)), None)
        if match is not None:
            found[match] += _gathers(table)
    return found


def _gathers(table: ir.Value) -> list[ir.Node]:
    """What reads rows of a table by 64-bit ids."""
    readers = [use.node for use in table.uses() if use.node.op_type == "Gather" and use.idx == 0]
    return [n for n in readers if (ids := n.inputs[1]) is not None and ids.dtype == ir.DataType.INT64]


def _codes(graph: ir.Graph, name: str, fitting: Packed, *, exact: bool = False) -> _Stored:
    assert fitting.scales is not None
    codes = constant_of(graph, f"{name}.q{fitting.bits}", fitting.weights)
    scales = constant_of(graph, f"{name}.scales", fitting.scales)
    attributes = packed_attributes(fitting.bits, fitting.block, fitting.k, fitting.n, exact=exact)
    return _Stored([codes, scales], "QMatMul", contract.DOMAIN, attributes)


def _floats(graph: ir.Graph, weight: ir.Value, kind: Any) -> _Stored:
    tensor = weight.const_value
    assert tensor is not None
    k, n = sizes(weight)
    chosen: Any = kind if fits(floats_of(weight), kind, lossless=True) else np.float32
    bits = np.dtype(chosen).itemsize * 8
    suffix, onnx_type = STORED[np.dtype(chosen).name]
    name = f"{weight.name}.packed.{suffix}"
    shape = ir.Shape([tiles_of(n), k, contract.TILE])
    lazy = ir.LazyTensor(lambda: ir.tensor(pack_floats(tensor.numpy(), chosen)), onnx_type, shape, name=name)
    value = ir.val(name, onnx_type, shape, const_value=lazy)
    graph.register_initializer(value)
    return _Stored([value], "QMatMul", contract.DOMAIN, packed_attributes(bits, 0, k, n))


def _portable(graph: ir.Graph, name: str, quantised: Quantised) -> _Stored:
    codes = constant_of(graph, f"{name}.q{quantised.bits}", nbits_codes(quantised))
    scales = _wide_scales(graph, f"{name}.scales", quantised)
    return _Stored([codes, scales], "MatMulNBits", "com.microsoft", nbits_attributes(quantised))


def _wide_scales(graph: ir.Graph, name: str, quantised: Quantised) -> ir.Value:
    """The scales as float32; half-precision ones pass through a Cast that ORT folds at load."""
    stored = constant_of(graph, name, quantised.scales.reshape(-1))
    if quantised.scales.dtype == np.float32:
        return stored
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}, name=f"{name}.cast")
    cast.outputs[0].name = f"{name}.fp32"
    cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.FLOAT, stored.shape
    # At the front: a later MatMul by the same weight may stand before this one in the list.
    graph.insert_before(graph[0], cast)
    return cast.outputs[0]
