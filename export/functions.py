"""The ONNX function body of `paceline::TreeAttention`: it runs wherever no kernel of ours is registered."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx.parser
import onnx_ir as ir

from paceline.runtime.ops import tree_attention as contract

_HIDDEN = "-3.0e38"
"""Added to the score of a row that may not be seen; finite, so that no row becomes NaN."""

_BODY = """
<domain: "{domain}", opset_import: ["" : {opset}]>
{name} <scale: float = 1.0, window: int = 0, softcap: float = 0.0> ({inputs}) => ({output}) {{
  zero = Constant<value_ints = [0]>()
  one = Constant<value_ints = [1]>()

  rows = Shape<start = 0, end = 1>(tree_mask)
  width = Shape<start = 1, end = 2>(tree_mask)
  waiting = Sub(width, rows)
  committed = Sub(past_len, waiting)
  committed_scalar = Squeeze(committed)
  first = Constant<value_int = 0>()
  step = Constant<value_int = 1>()
  columns = Range(first, committed_scalar, step)
  window_size = Constant<value_int : int = @window>()
  has_window = Cast<to = 9>(window_size)
  endless = Constant<value_int = 4611686018427387904>()
  reach = Where(has_window, window_size, endless)
  horizon = Sub(positions, reach)
  horizon_column = Unsqueeze(horizon, one)
  near_past = Greater(columns, horizon_column)
  near_new = Greater(positions, horizon_column)
  parts = Concat<axis = 0>(waiting, rows)
  mask_waiting, mask_new = Split<axis = 1>(tree_mask, parts)
  seen_new = And(mask_new, near_new)
  seen = Concat<axis = 1>(near_past, mask_waiting, seen_new)
  shown = Constant<value_float = 0.0>()
  hidden = Constant<value_float = {hidden}>()
  row_bias = Where(seen, shown, hidden)

{shapes}
  bias = Tile(row_bias, tiles)
  q_grouped = Reshape(q, grouped)
  k_past = Slice(cache_k, zero, past_len, one)
  v_past = Slice(cache_v, zero, past_len, one)
  k_past_t = Transpose<perm = [0, 2, 1]>(k_past)
  k_new_t = Transpose<perm = [0, 1, 3, 2]>(k_new)
  past_raw = MatMul(q_grouped, k_past_t)
  new_raw = MatMul(q_grouped, k_new_t)
  factor = Constant<value_float : float = @scale>()
{scores}
  masked = Add(scores, bias)
  weights = Softmax<axis = -1>(masked)
  lengths = Concat<axis = 0>(past_len, rows)
  past_weights, new_weights = Split<axis = -1>(weights, lengths)
  past_out = MatMul(past_weights, v_past)
  new_out = MatMul(new_weights, v_new)
  both = Add(past_out, new_out)
  {output} = Reshape(both, ungrouped)
}}
"""

_ANY_SHAPES = """
  rest = Constant<value_ints = [-1]>()
  kv_heads = Shape<start = 0, end = 1>(cache_k)
  size = Shape<start = 2, end = 3>(cache_k)
  q_heads = Shape<start = 1, end = 2>(q)
  groups = Div(q_heads, kv_heads)
  tiles = Concat<axis = 0>(groups, one)
  grouped = Concat<axis = 0>(one, kv_heads, rest, size)
  ungrouped = Concat<axis = 0>(one, q_heads, rest, size)
"""

_FIXED_SHAPES = """
  tiles = Constant<value_ints = [{groups}, 1]>()
  grouped = Constant<value_ints = [1, {kv_heads}, -1, {size}]>()
  ungrouped = Constant<value_ints = [1, {q_heads}, -1, {size}]>()
"""

_PLAIN = """
  past_scores = Mul(past_raw, factor)
  new_scores = Mul(new_raw, factor)
  scores = Concat<axis = -1>(past_scores, new_scores)
"""

_CAPPED = """
  cap = Constant<value_float : float = @softcap>()
  capped_factor = Div(factor, cap)
  past_scores = Mul(past_raw, capped_factor)
  new_scores = Mul(new_raw, capped_factor)
  raw = Concat<axis = -1>(past_scores, new_scores)
  bent = Tanh(raw)
  scores = Mul(bent, cap)
"""


@dataclass(frozen=True, slots=True)
class Heads:
    """Sizes of one attention layer: query heads, key heads, numbers per head."""

    query: int
    key: int
    size: int


def tree_attention_function(opset: int, *, heads: Heads | None, capped: bool) -> onnx.FunctionProto:
    """Return the body for one model.

    `opset` must be the model's own: ONNX Runtime inlines a body against it and ignores the body's.
    `heads` are the sizes if all layers share them; with None the body reads them from its inputs, which costs
    a dozen small nodes a layer. `capped`: whether scores have a soft-cap.
    """
    shapes = _ANY_SHAPES
    if heads is not None:
        shapes = _FIXED_SHAPES.format(
            groups=heads.query // heads.key, kv_heads=heads.key, q_heads=heads.query, size=heads.size
        )
    text = _BODY.format(
        domain=contract.DOMAIN,
        opset=opset,
        name=contract.NAME,
        inputs=", ".join(contract.INPUTS),
        output=contract.OUTPUTS[0],
        hidden=_HIDDEN,
        shapes=shapes,
        scores=_CAPPED if capped else _PLAIN,
    )
    return onnx.parser.parse_function(text)


def append_functions(model: ir.Model) -> None:
    """Give `model` the body of every `paceline` operator its nodes use. Raises ValueError."""
    nodes = [n for n in model.graph if n.domain == contract.DOMAIN and n.op_type == contract.NAME]
    if not nodes:
        return
    capped = {node.attributes["softcap"].as_float() != 0.0 for node in nodes}
    if len(capped) > 1:
        raise ValueError(
            "some layers cap their attention scores and some do not; one function body cannot do both"
        )
    sizes = {_heads(node) for node in nodes}
    heads = sizes.pop() if len(sizes) == 1 else None
    body = tree_attention_function(model.opset_imports[""], heads=heads, capped=capped.pop())
    function = ir.serde.deserialize_function(body)
    model.functions[function.identifier()] = function
    model.opset_imports[contract.DOMAIN] = contract.VERSION


def _heads(node: ir.Node) -> Heads | None:
    query, key = (value.shape if value is not None else None for value in node.inputs[:2])
    if query is None or key is None:
        return None
    sizes = (query[1], key[1], query[3])
    if not all(isinstance(size, int) for size in sizes):
        return None
    return Heads(*(int(str(size)) for size in sizes))
