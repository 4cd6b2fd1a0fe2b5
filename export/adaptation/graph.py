"""Low-rank adapters (LoRA, 2106.09685) in a finished graph: products of its end get weights that are inputs."""

from __future__ import annotations

import math

import onnx_ir as ir

from paceline.export.errors import ExportError
from paceline.export.functions import append_functions
from paceline.export.fuse import operand
from paceline.runtime.adaptation.contract import PREDICTOR
from paceline.runtime.model.contract import ODDS
from paceline.runtime.ops import packed_matmul as matmul
from paceline.runtime.ops import tree_attention as attention

PREFIX = "adapter."
FIRST, SECOND = ".a", ".b"
"""The two factors of an adapter: `y + (x A) B`."""
_ALL_BITS = 32


def tail(graph: ir.Graph, layers: int) -> list[ir.Node]:
    """The nodes behind the last attention, up to the logits, in the order in which they run. Raises ExportError."""
    cache = next((value for value in graph.inputs if value.name == f"cache_k.{layers - 1}"), None)
    readers = [] if cache is None else [use.node for use in cache.uses()]
    if len(readers) != 1 or readers[0].op_type not in (attention.NAME, attention.ROTARY_NAME):
        raise ExportError(
            "its last attention was not found, so it cannot be given adapters: leave --adapt out"
        )
    reached, found = {readers[0].outputs[0]}, list[ir.Node]()
    for node in graph:
        if not reached.isdisjoint(value for value in node.inputs if value is not None):
            reached.update(node.outputs)
            found.append(node)
    return found


def add_adapters(model: ir.Model, layers: int, rank: int) -> dict[str, list[int]]:
    """Give the products behind the last attention adapters of this rank; returns their shapes by name.

    These are what the last block adds to the stream, and the LM head: so rows of the cache do not depend on adapters,
    and stay what they are while those change. A gate stays as it is: its kernel applies the activation. Factors are in
    the packed layout of 32 bits: A [tiles, K, 16], B [tiles, rank, 16]. Raises ExportError where there is nothing to
    adapt.
    """
    graph, shapes = model.graph, dict[str, list[int]]()
    for number, node in enumerate(_adaptable(graph, layers)):
        k, n = (node.attributes[size].as_int() for size in ("K", "N"))
        names = [f"{PREFIX}{number}{factor}" for factor in (FIRST, SECOND)]
        for name, (rows, columns) in zip(names, ((k, rank), (rank, n)), strict=True):
            shapes[name] = [math.ceil(columns / matmul.TILE), rows, matmul.TILE]
        first, second = (ir.val(name, ir.DataType.FLOAT, ir.Shape(shapes[name])) for name in names)
        graph.inputs.extend([first, second])
        _adapt(graph, node, first, second, rank)
    if not shapes:
        raise ExportError(
            "it has no packed products behind its last attention, so it cannot be given adapters: export it with "
            "--profile cpu, or leave --adapt out"
        )
    append_functions(model)
    return shapes


def add_predictor(model: ir.Model, layers: int) -> dict[str, list[int]]:
    """Let a graph with adapters give ODDS, a product of what its LM head reads; returns its weights' shape by name.

    Acceptance predicted on the draft model's hidden state is SpecDec++'s (2405.19715) and OmniDraft's (2507.02659).
    """
    graph = model.graph
    narrow = [node for node in tail(graph, layers) if adapted(node)][-2]  # of the LM head, which comes last
    k = narrow.attributes["K"].as_int()
    weights = ir.val(PREDICTOR, ir.DataType.FLOAT, ir.Shape([1, k, matmul.TILE]))
    graph.inputs.append(weights)
    read = list(narrow.inputs)
    read[list(matmul.PRODUCTS[narrow.op_type]).index("weights")] = weights
    attributes = {name: given.value for name, given in narrow.attributes.items()} | _attributes(k, 1)
    node = ir.node(narrow.op_type, read, attributes, domain=matmul.DOMAIN)
    node.name, odds = ODDS, node.outputs[0]
    assert narrow.outputs[0].shape is not None
    odds.name, odds.dtype = ODDS, ir.DataType.FLOAT
    odds.shape = ir.Shape([*list(narrow.outputs[0].shape)[:-1], 1])
    graph.insert_after(narrow, node)
    graph.outputs.insert(1, odds)
    append_functions(model)
    return {PREDICTOR: [1, k, matmul.TILE]}


def _adaptable(graph: ir.Graph, layers: int) -> list[ir.Node]:
    return [node for node in tail(graph, layers) if node.op_type in ("QMatMul", "QMatMulAdd", "NormQMatMul")]


def _adapt(graph: ir.Graph, node: ir.Node, first: ir.Value, second: ir.Value, rank: int) -> None:
    """Add `(x A) B` to what a product gives; x is normed as the product norms it."""
    normed = node.op_type == "NormQMatMul"
    read = [operand(node, "x"), operand(node, "norm"), first] if normed else [operand(node, "x"), first]
    given = node.outputs[0]
    readers = list(given.uses())
    k, n = node.attributes["K"].as_int(), node.attributes["N"].as_int()
    attributes = _attributes(k, rank)
    if normed:
        attributes["epsilon"] = node.attributes["epsilon"].as_float()
    narrow = ir.node("NormQMatMul" if normed else "QMatMul", read, attributes, domain=matmul.DOMAIN)
    wide = ir.node(
        "QMatMulAdd", [narrow.outputs[0], given, second], _attributes(rank, n), domain=matmul.DOMAIN
    )
    label = given.name
    for made, width in ((narrow.outputs[0], rank), (wide.outputs[0], n)):
        made.dtype = ir.DataType.FLOAT
        assert given.shape is not None
        made.shape = ir.Shape([*list(given.shape)[:-1], width])
    narrow.name, narrow.outputs[0].name = f"{label}.narrow", f"{label}.narrow"
    wide.name = f"{label}.adapted"
    graph.insert_after(node, [narrow, wide])
    for reader, at in readers:
        reader.replace_input_with(at, wide.outputs[0])
    for at, output in enumerate(graph.outputs):
        if output is given:
            graph.outputs[at] = wide.outputs[0]
    given.name, wide.outputs[0].name = f"{label}.plain", label


def _attributes(k: int, n: int) -> dict[str, int | float]:
    return {"K": k, "N": n, "bits": _ALL_BITS, "block_size": 0, "activation_bits": _ALL_BITS}


def adapted(node: ir.Node) -> bool:
    """Whether a product multiplies by a factor of an adapter."""
    return any(value is not None and str(value.name).startswith(PREFIX) for value in node.inputs)
