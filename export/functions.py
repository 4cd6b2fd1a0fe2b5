"""Gives a model the ONNX function body of every operator of ours that its nodes use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Any, cast

import onnx
import onnx_ir as ir

from paceline.export.bodies_attention import Heads, rotary_attention_function, tree_attention_function
from paceline.export.bodies_embedding import embedding_function
from paceline.export.bodies_matmul import Form, piece_of, product_function
from paceline.export.fuse_attention import cache_of, form_of
from paceline.runtime.ops import packed_matmul as matmul
from paceline.runtime.ops import tree_attention as attention

_OPSET = 1
"""Version of our operators as ONNX counts them; what the layout of their weights is, they say themselves."""


def append_functions(model: ir.Model) -> None:
    """Give `model` the body of every `paceline` operator its nodes use, and none else. Raises ValueError.

    Nodes of one operator that need different bodies are told apart by their overload, a number; it is empty where one
    body serves all of them.
    """
    nodes: dict[str, dict[Hashable, list[ir.Node]]] = defaultdict(lambda: defaultdict(list))
    for node in model.graph:
        if node.domain == matmul.DOMAIN:
            nodes[node.op_type][_kind(node)].append(node)
    for key in [key for key in model.functions if key[0] == matmul.DOMAIN]:
        del model.functions[key]
    for name, kinds in nodes.items():
        for number, alike in enumerate(kinds.values()):
            function = ir.serde.deserialize_function(_body(name, alike, model.opset_imports[""]))
            function.overload = str(number) if len(kinds) > 1 else ""
            for node in alike:
                node.overload = function.overload
            model.functions[function.identifier()] = function
            model.opset_imports[matmul.DOMAIN] = _OPSET
            if "com.microsoft" in function.opset_imports:
                model.opset_imports["com.microsoft"] = 1


def _kind(node: ir.Node) -> Hashable:
    """What nodes of one operator must have in common to share a body."""
    if node.op_type == attention.NAME:
        return node.attributes["softcap"].as_float() != 0.0, cache_of(node)
    if node.op_type == attention.ROTARY_NAME:
        return form_of(node)
    bits, minimum = weights_of(node)
    if node.op_type == matmul.EMBEDDING:
        return bits, minimum
    activation = node.attributes.get("activation")
    return (
        bits,
        minimum,
        0 if bits == 16 else piece_of(_number(node, "K"), _number(node, "block_size")),
        _number(node, "activation_bits") == 32,
        bits == 16 and _input(node, "bias") is not None,
        activation.as_string() if activation else "",
    )


def _body(name: str, nodes: list[ir.Node], opset: int) -> onnx.FunctionProto:
    if name == attention.NAME:
        return _tree_attention(nodes, opset)
    if name == attention.ROTARY_NAME:
        return rotary_attention_function(opset, form_of(nodes[0]))
    if name == matmul.EMBEDDING:
        return embedding_function(opset, *weights_of(nodes[0]))
    return product_function(name, opset, form_of_products(nodes))


def form_of_products(nodes: list[ir.Node]) -> Form:
    """What the body of packed products of one kind must serve."""
    bits, minimum, piece, exact, biased, activation = cast(Any, _kind(nodes[0]))
    return Form(
        bits=bits,
        minimum=minimum,
        piece=piece,
        even_k=all(_number(node, "K") % 8 == 0 for node in nodes),
        whole=bits == 16 or all(_number(node, "K") % _number(node, "block_size") == 0 for node in nodes),
        even_n=all(_number(node, "N") % matmul.TILE == 0 for node in nodes),
        exact=exact,
        biased=biased,
        activation=activation,
    )


def weights_of(node: ir.Node) -> tuple[int, bool]:
    """Bits of a packed product's codes, 16 for all floats, and whether they have minima."""
    scales = _input(node, "scales")
    shape = [] if scales is None or scales.shape is None else [int(str(size)) for size in scales.shape]
    return min(16, _number(node, "bits")), bool(shape) and matmul.has_minimum(tuple(shape))


def _input(node: ir.Node, name: str) -> ir.Value | None:
    at = matmul.PRODUCTS.get(node.op_type, matmul.EMBEDDING_INPUTS).index(name)
    return node.inputs[at] if at < len(node.inputs) else None


def _number(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int()


def _tree_attention(nodes: list[ir.Node], opset: int) -> onnx.FunctionProto:
    sizes = {_heads(node) for node in nodes}
    heads = sizes.pop() if len(sizes) == 1 else None
    capped = nodes[0].attributes["softcap"].as_float() != 0.0
    return tree_attention_function(opset, heads=heads, capped=capped, cache=cache_of(nodes[0]))


def _heads(node: ir.Node) -> Heads | None:
    query, key = (value.shape if value is not None else None for value in node.inputs[:2])
    if query is None or key is None:
        return None
    sizes = (query[1], key[1], query[3])
    if not all(isinstance(size, int) for size in sizes):
        return None
    return Heads(*(int(str(size)) for size in sizes))
