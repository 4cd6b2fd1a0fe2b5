"""Gives a model the ONNX function body of every operator of ours that its nodes use."""

from __future__ import annotations

from collections import defaultdict
from typing import TypeVar

import onnx
import onnx_ir as ir

from paceline.export.bodies_attention import Heads, rotary_attention_function, tree_attention_function
from paceline.export.bodies_embedding import embedding_function
from paceline.export.bodies_matmul import Form, column_piece, product_function
from paceline.export.fuse_attention import cache_of, form_of
from paceline.runtime.ops import packed_matmul as matmul
from paceline.runtime.ops import tree_attention as attention

_BLOCKS = (16, 32, 64, 128)
"""What MatMulNBits takes."""
_Form = TypeVar("_Form")


def append_functions(model: ir.Model) -> None:
    """Give `model` the body of every `paceline` operator its nodes use, and none else. Raises ValueError.

    One body serves all nodes of a name, so these must have the same form.
    """
    nodes: dict[str, list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        if node.domain == matmul.DOMAIN:
            nodes[node.op_type].append(node)
    for key in [key for key in model.functions if key[0] == matmul.DOMAIN]:
        del model.functions[key]
    for name, alike in nodes.items():
        function = ir.serde.deserialize_function(_body(name, alike, model.opset_imports[""]))
        model.functions[function.identifier()] = function
        model.opset_imports[matmul.DOMAIN] = matmul.VERSION
        if "com.microsoft" in function.opset_imports:
            model.opset_imports["com.microsoft"] = 1


def _body(name: str, nodes: list[ir.Node], opset: int) -> onnx.FunctionProto:
    if name == attention.NAME:
        return _tree_attention(nodes, opset)
    if name == attention.ROTARY_NAME:
        [form] = _one_form(name, {form_of(node) for node in nodes})
        return rotary_attention_function(opset, form)
    if name == matmul.EMBEDDING:
        [bits] = _one_form(name, {min(16, _number(node, "bits")) for node in nodes})
        return embedding_function(opset, bits)
    return product_function(name, opset, form_of_products(name, nodes))


def form_of_products(name: str, nodes: list[ir.Node]) -> Form:
    """What the body of a packed product must serve. Raises ValueError where nodes need different ones."""
    [(bits, activation, exact)] = _one_form(name, {_kind(node) for node in nodes})
    at = matmul.PRODUCTS[name].index("bias")
    biased = {bits == 16 and len(n.inputs) > at and n.inputs[at] is not None for n in nodes}
    [has_bias] = _one_form(name, biased)
    blocks = {_number(node, "block_size") for node in nodes}
    piece = 0 if bits == 16 or blocks <= set(_BLOCKS) else column_piece(blocks)
    return Form(
        bits=bits,
        even_k=all(_number(node, "K") % 8 == 0 for node in nodes),
        even_n=all(_number(node, "N") % matmul.TILE == 0 for node in nodes),
        piece=piece,
        exact=exact,
        biased=has_bias,
        activation=activation,
    )


def _kind(node: ir.Node) -> tuple[int, str, bool]:
    activation = node.attributes.get("activation")
    exact = _number(node, "activation_bits") == 32
    return min(16, _number(node, "bits")), activation.as_string() if activation else "", exact


def _one_form(name: str, forms: set[_Form]) -> set[_Form]:
    if len(forms) > 1:
        raise ValueError(f"one body of {name} cannot serve all of {forms}")
    return forms


def _number(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int()


def _tree_attention(nodes: list[ir.Node], opset: int) -> onnx.FunctionProto:
    capped = {node.attributes["softcap"].as_float() != 0.0 for node in nodes}
    if len(capped) > 1:
        raise ValueError(
            "some layers cap their attention scores and some do not; one function body cannot do both"
        )
    sizes = {_heads(node) for node in nodes}
    heads = sizes.pop() if len(sizes) == 1 else None
    [cache] = _one_form(attention.NAME, {cache_of(node) for node in nodes})
    return tree_attention_function(opset, heads=heads, capped=capped.pop(), cache=cache)


def _heads(node: ir.Node) -> Heads | None:
    query, key = (value.shape if value is not None else None for value in node.inputs[:2])
    if query is None or key is None:
        return None
    sizes = (query[1], key[1], query[3])
    if not all(isinstance(size, int) for size in sizes):
        return None
    return Heads(*(int(str(size)) for size in sizes))
