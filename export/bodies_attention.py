"""ONNX function bodies of the attention operators: they run wherever no kernel of ours is registered."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx.parser

from paceline.memory.cache import CacheFormat
from paceline.runtime.ops import tree_attention as contract

_HIDDEN = "-3.0e38"
"""Added to the score of a row that may not be seen; finite, so that no row becomes NaN."""

_ENDLESS = 1 << 30
"""A window that no text fills; in 32 bits, in which some providers compute, a larger number would be another one."""

_TREE = """
<domain: "{domain}", opset_import: ["" : {opset}]>
{name} <scale: float = 1.0, window: int = 0, softcap: float = 0.0> ({inputs}) => (out) {{
{attend}
  out = Reshape(both, ungrouped)
}}
"""

_ROTARY = """
<domain: "{domain}", opset_import: ["" : {opset}]>
{name} <q_heads: int, kv_heads: int, scale: float = 1.0, window: int = 0, softcap: float = 0.0, \
epsilon: float = 1.0e-6, interleaved: int = 0> ({inputs}) => (out, new_k, new_v) {{
  parts_of_qkv = Constant<value_ints = [{q_width}, {kv_width}, {kv_width}]>()
  q_flat, k_flat, v_flat = Split<axis = -1>(qkv, parts_of_qkv)
  q_shape = Constant<value_ints = [1, -1, {q_heads}, {size}]>()
  kv_shape = Constant<value_ints = [1, -1, {kv_heads}, {size}]>()
  q_rows = Reshape(q_flat, q_shape)
  k_rows = Reshape(k_flat, kv_shape)
  v_rows = Reshape(v_flat, kv_shape)
{norms}
  q_plain = Transpose<perm = [0, 2, 1, 3]>(q_ready)
  k_plain = Transpose<perm = [0, 2, 1, 3]>(k_ready)
  v_new = Transpose<perm = [0, 2, 1, 3]>(v_rows)
  q = RotaryEmbedding<interleaved : int = @interleaved, rotary_embedding_dim = {rotary}>(q_plain, cos, sin)
  k_new = RotaryEmbedding<interleaved : int = @interleaved, rotary_embedding_dim = {rotary}>(k_plain, cos, sin)
{attend}
  by_head = Reshape(both, ungrouped)
  by_row = Transpose<perm = [0, 2, 1, 3]>(by_head)
  out_shape = Constant<value_ints = [1, -1, {q_width}]>()
  out = Reshape(by_row, out_shape)
  new_k = Squeeze(k_new, zero)
  new_v = Squeeze(v_new, zero)
}}
"""

_NORMS = """
  q_ready = RMSNormalization<axis = -1, epsilon : float = @epsilon>(q_rows, q_norm)
  k_ready = RMSNormalization<axis = -1, epsilon : float = @epsilon>(k_rows, k_norm)
"""

_NO_NORMS = """
  q_ready = Identity(q_rows)
  k_ready = Identity(k_rows)
"""

_ATTEND = """
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
  endless = Constant<value_int = {endless}>()
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
{keys}
{values}
  k_past_t = Transpose<perm = [0, 2, 1]>(k_past)
  k_near_t = Transpose<perm = [0, 1, 3, 2]>(k_near)
  past_raw = MatMul(q_grouped, k_past_t)
  new_raw = MatMul(q_grouped, k_near_t)
  factor = Constant<value_float : float = @scale>()
{scores}
  masked = Add(scores, bias)
  weights = Softmax<axis = -1>(masked)
  lengths = Concat<axis = 0>(past_len, rows)
  past_weights, new_weights = Split<axis = -1>(weights, lengths)
  past_out = MatMul(past_weights, v_past)
  new_out = MatMul(new_weights, v_near)
  both = Add(past_out, new_out)
"""

_SINGLE = """
  {x}_past = Slice(cache_{x}, zero, past_len, one)
  {x}_near = Identity({x}_new)
"""

_HALF = """
  {x}_held = Slice(cache_{x}, zero, past_len, one)
  {x}_past = Cast<to = 1>({x}_held)
  {x}_half = Cast<to = 10>({x}_new)
  {x}_near = Cast<to = 1>({x}_half)
"""

_CODES = """
  {x}_held = Slice(cache_{x}, zero, past_len, one)
  {x}_held_codes = Cast<to = 1>({x}_held)
  {x}_held_scales = Slice({x}_scales, zero, past_len, one)
  {x}_after = Constant<value_ints = [2]>()
  {x}_held_columns = Unsqueeze({x}_held_scales, {x}_after)
  {x}_past = Mul({x}_held_codes, {x}_held_columns)
  {x}_last = Constant<value_ints = [-1]>()
  {x}_sizes = Abs({x}_new)
  {x}_most = ReduceMax<keepdims = 1>({x}_sizes, {x}_last)
  {x}_least = Constant<value_float = 1.0e-30>()
  {x}_nothing = Less({x}_most, {x}_least)
  {x}_none = Constant<value_float = 0.0>()
  {x}_full = Constant<value_float = 127.0>()
  {x}_ratio = Div({x}_full, {x}_most)
  {x}_factor = Where({x}_nothing, {x}_none, {x}_ratio)
  {x}_spread = Mul({x}_new, {x}_factor)
  {x}_codes = Round({x}_spread)
  {x}_unit = Div({x}_most, {x}_full)
  {x}_scale = Where({x}_nothing, {x}_none, {x}_unit)
  {x}_near = Mul({x}_codes, {x}_scale)
"""

_CACHED: dict[CacheFormat, str] = {"fp32": _SINGLE, "fp16": _HALF, "int8": _CODES}
"""What the cache holds, and new rows as it will hold them: memory.cache.as_codes in ONNX."""

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


@dataclass(frozen=True, slots=True)
class RotaryForm:
    """What all RotaryTreeAttention nodes of a model share. rotary: how many numbers of a head are rotated."""

    heads: Heads
    rotary: int
    normed: bool
    capped: bool
    cache: CacheFormat = "fp32"


def tree_attention_function(
    opset: int, *, heads: Heads | None, capped: bool, cache: CacheFormat = "fp32"
) -> onnx.FunctionProto:
    """Return the body of TreeAttention for one model and one form of its cache.

    `opset` must be the model's own: ONNX Runtime inlines a body against it and ignores the body's.
    `heads` are the sizes if all layers share them; with None the body reads them from its inputs, which costs
    a dozen small nodes a layer. `capped`: whether scores have a soft-cap.
    """
    text = _TREE.format(
        domain=contract.DOMAIN,
        opset=opset,
        name=contract.NAME,
        inputs=", ".join((*contract.INPUTS, *contract.OPTIONAL_INPUTS)),
        attend=_attend(heads, capped, cache),
    )
    return onnx.parser.parse_function(text)


def rotary_attention_function(opset: int, form: RotaryForm) -> onnx.FunctionProto:
    """Return the body of RotaryTreeAttention for one model, at the model's opset."""
    heads = form.heads
    text = _ROTARY.format(
        domain=contract.DOMAIN,
        opset=opset,
        name=contract.ROTARY_NAME,
        inputs=", ".join(contract.ROTARY_INPUTS),
        q_width=heads.query * heads.size,
        kv_width=heads.key * heads.size,
        q_heads=heads.query,
        kv_heads=heads.key,
        size=heads.size,
        rotary=0 if form.rotary == heads.size else form.rotary,
        norms=_NORMS if form.normed else _NO_NORMS,
        attend=_attend(heads, form.capped, form.cache),
    )
    return onnx.parser.parse_function(text)


def _attend(heads: Heads | None, capped: bool, cache: CacheFormat) -> str:
    """From q, k_new and v_new, [1, heads, T, D], to `both`, the result in groups of query heads."""
    shapes = _ANY_SHAPES
    if heads is not None:
        shapes = _FIXED_SHAPES.format(
            groups=heads.query // heads.key, kv_heads=heads.key, q_heads=heads.query, size=heads.size
        )
    return _ATTEND.format(
        shapes=shapes,
        hidden=_HIDDEN,
        endless=_ENDLESS,
        scores=_CAPPED if capped else _PLAIN,
        keys=_CACHED[cache].format(x="k"),
        values=_CACHED[cache].format(x="v"),
    )
