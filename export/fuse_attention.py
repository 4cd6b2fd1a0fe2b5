"""From a fused projection to the output projection: one RotaryTreeAttention a layer."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common

from paceline.export.bodies_attention import Heads, RotaryForm
from paceline.export.fuse import only_reader
from paceline.export.passes import sizes
from paceline.export.pieces import pieces_of
from paceline.memory.cache import CacheFormat
from paceline.runtime.ops import tree_attention as contract

_HEADS_FIRST = [0, 2, 1, 3]
_CACHES: dict[ir.DataType, CacheFormat] = {ir.DataType.FLOAT16: "fp16", ir.DataType.INT8: "int8"}
_EPSILON = 1e-5
"""RMSNormalization's own default."""


@dataclass(frozen=True, slots=True)
class _Path:
    """How a piece of the projection becomes the heads of one operand."""

    piece: ir.Value
    heads: int
    size: int
    rotation: ir.Node | None
    norm: ir.Node | None


@dataclass(frozen=True, slots=True)
class _Match:
    """A TreeAttention node with all that goes into the fused one."""

    node: ir.Node
    qkv: ir.Value
    query: _Path
    key: _Path
    out: ir.Node
    new_k: ir.Node
    new_v: ir.Node


def fuse_attention(model: ir.Model) -> None:
    """Fuse splitting, head norms, rotation, attention and merging."""
    graph = model.graph
    nodes = [n for n in graph if n.domain == contract.DOMAIN and n.op_type == contract.NAME]
    for node in nodes:
        if (match := _match(node)) is not None:
            _replace(graph, match)
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)


def form_of(node: ir.Node) -> RotaryForm:
    """What a RotaryTreeAttention node shares with the others of its model."""
    qkv, cos, _, norm = node.inputs[:4]
    assert qkv is not None
    assert cos is not None
    query, key = (node.attributes[name].as_int() for name in ("q_heads", "kv_heads"))
    width, half = _last(qkv), _last(cos)
    capped = node.attributes["softcap"].as_float() != 0.0
    heads = Heads(query, key, width // (query + 2 * key))
    return RotaryForm(heads, 2 * half, norm is not None, capped, cache_of(node))


def cache_of(node: ir.Node) -> CacheFormat:
    """In what form the cache of an attention node is kept."""
    names = contract.INPUTS if node.op_type == contract.NAME else contract.ROTARY_INPUTS
    held = node.inputs[names.index("cache_k")]
    return _CACHES.get(held.dtype, "fp32") if held is not None and held.dtype is not None else "fp32"


def _match(node: ir.Node) -> _Match | None:
    q, k, v = node.inputs[:3]
    query, key, value = _path(q), _path(k), _path(v)
    out = _merged(node.outputs[0])
    new_k, new_v = _given_out(k, node), _given_out(v, node)
    if query is None or key is None or value is None or out is None or new_k is None or new_v is None:
        return None
    if (
        value.rotation is not None
        or value.norm is not None
        or (value.heads, value.size) != (key.heads, key.size)
    ):
        return None
    qkv = _projection(query, key, value)
    if qkv is None or not _rotated_alike(query, key) or not _normed_alike(query, key):
        return None
    assert query.rotation is not None
    cos = query.rotation.inputs[1]
    if cos is None or cos.shape is None or len(cos.shape) != 3 or not isinstance(cos.shape[-1], int):
        return None
    return _Match(node, qkv, query, key, out, new_k, new_v)


def _path(value: ir.Value | None) -> _Path | None:
    """Walk back from [1, heads, T, D] to [1, T, heads * D]."""
    found: dict[str, ir.Node] = {}
    while value is not None and (node := value.producer()) is not None and node.domain == "":
        kind = node.op_type
        if kind not in ("RotaryEmbedding", "RMSNormalization", "Transpose", "Reshape") or kind in found:
            return None
        if kind == "RotaryEmbedding" and found:
            return None
        found[kind] = node
        value = node.inputs[0]
        if kind == "Reshape":
            break
    shape = found["Reshape"].outputs[0].shape if "Reshape" in found else None
    if value is None or shape is None or len(shape) != 4 or "Transpose" not in found:
        return None
    heads, size = shape[2], shape[3]
    turned = list(found["Transpose"].attributes["perm"].as_ints()) == _HEADS_FIRST
    if not turned or not isinstance(heads, int) or not isinstance(size, int) or value.shape is None:
        return None
    if len(value.shape) != 3 or value.shape[1] != shape[1] or _last(value) != heads * size:
        return None
    return _Path(value, heads, size, found.get("RotaryEmbedding"), found.get("RMSNormalization"))


def _projection(query: _Path, key: _Path, value: _Path) -> ir.Value | None:
    """The value that is cut into these three pieces, in this order, and nothing else."""
    node = query.piece.producer()
    whole = node.inputs[0] if node is not None and node.op_type in ("Split", "Slice") else None
    if whole is None or whole.shape is None or not isinstance(whole.shape[-1], int):
        return None
    pieces = pieces_of(whole, whole.shape[-1])
    wanted = [path.piece for path in (query, key, value)]
    return whole if pieces is not None and [piece.value for piece in pieces] == wanted else None


def _rotated_alike(query: _Path, key: _Path) -> bool:
    a, b = query.rotation, key.rotation
    if a is None or b is None or a.inputs[1:] != b.inputs[1:] or len(a.inputs) != 3:
        return False
    return _attributes(a) == _attributes(b)


def _normed_alike(query: _Path, key: _Path) -> bool:
    """No head norms, or two of the last axis with one epsilon."""
    norms = [path.norm for path in (query, key) if path.norm is not None]
    if not norms:
        return True
    for norm in norms:
        scale, axis = norm.inputs[1], norm.attributes.get("axis")
        if scale is None or scale.const_value is None or sizes(scale) != [query.size]:
            return False
        if axis is not None and axis.as_int() not in (-1, 3):
            return False
    return len(norms) == 2 and _epsilon(norms[0]) == _epsilon(norms[1])


def _merged(value: ir.Value) -> ir.Node | None:
    """The Reshape that makes [1, T, heads * D] of the result."""
    turn = only_reader(value)
    if turn is None or turn.op_type != "Transpose" or list(turn.attributes["perm"].as_ints()) != _HEADS_FIRST:
        return None
    merge = only_reader(turn.outputs[0])
    if merge is None or merge.op_type != "Reshape":
        return None
    shape = merge.outputs[0].shape
    return merge if shape is not None and len(shape) == 3 and shape[0] == 1 else None


def _given_out(value: ir.Value | None, node: ir.Node) -> ir.Node | None:
    """The Squeeze that gives new rows out, if only it and the attention read them."""
    readers = {use.node for use in value.uses()} - {node} if value is not None else set()
    squeeze = readers.pop() if len(readers) == 1 else None
    return squeeze if squeeze is not None and squeeze.op_type == "Squeeze" else None


def _replace(graph: ir.Graph, match: _Match) -> None:
    old, rotation = match.node, match.query.rotation
    assert rotation is not None
    norms = [path.norm.inputs[1] if path.norm is not None else None for path in (match.query, match.key)]
    inputs = [match.qkv, *rotation.inputs[1:], *norms, *old.inputs[3:]]
    attributes = {
        **{name: old.attributes[name].value for name in contract.ATTRIBUTES},
        "q_heads": match.query.heads,
        "kv_heads": match.key.heads,
        "epsilon": _epsilon(match.query.norm),
        "interleaved": _attributes(rotation)[0],
    }
    new = ir.node(
        contract.ROTARY_NAME, inputs, attributes, domain=contract.DOMAIN, num_outputs=3, name=old.name
    )
    graph.insert_before(old, new)
    for node, after in zip((match.out, match.new_k, match.new_v), new.outputs, strict=True):
        before = node.outputs[0]
        after.type, after.shape, after.name = before.type, before.shape, before.name
        before.replace_all_uses_with(after, replace_graph_outputs=True)
        before.name = f"{before.name}.unfused"


def _attributes(rotation: ir.Node) -> tuple[int, int]:
    found = (rotation.attributes.get(name) for name in ("interleaved", "rotary_embedding_dim"))
    interleaved, width = (0 if a is None else a.as_int() for a in found)
    return interleaved, width


def _epsilon(norm: ir.Node | None) -> float:
    found = None if norm is None else norm.attributes.get("epsilon")
    return _EPSILON if found is None else found.as_float()


def _last(value: ir.Value) -> int:
    return int(str(value.shape[-1])) if value.shape is not None else 0
