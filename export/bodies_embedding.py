"""The ONNX function body of `paceline::QEmbedding`: it unpacks the rows that are asked for and no others."""

from __future__ import annotations

import onnx
import onnx.parser

from paceline.export.bodies_codes import WIDENED, widened_codes
from paceline.runtime.ops import packed_matmul as contract

_FUNCTION = """
<domain: "{domain}", opset_import: ["" : {opset}]>
{name} <K: int, N: int, bits: int, block_size: int> ({inputs}) => (y) {{
  all = Constant<value_ints = [-1]>()
  first = Constant<value_ints = [0]>()
  one = Constant<value_ints = [1]>()
  sixteen = Constant<value_ints = [16]>()
  size_number = Constant<value_int : int = @K>()
  size = Reshape(size_number, all)
  flat = Reshape(ids, all)
  tile = Div(flat, sixteen)
  in_tile = Mod(flat, sixteen)
  lane = Unsqueeze(in_tile, one)
  tiles = Gather<axis = 0>(weights, tile)
{steps}
  ids_shape = Shape(ids)
  shape = Concat<axis = 0>(ids_shape, size)
  y = Reshape<allowzero = 1>(rows, shape)
}}
"""

_FLOATS = """
  wide = Cast<to = 1>(tiles)
  by_lane = Transpose<perm = [0, 2, 1]>(wide)
  rows = GatherND<batch_dims = 1>(by_lane, lane)
"""

_CODES = """
  lanes_shape = Constant<value_ints = [0, 0, 16, 4]>()
  lanes = Reshape(tiles, lanes_shape)
  by_lane = Transpose<perm = [0, 2, 1, 3]>(lanes)
  bytes = GatherND<batch_dims = 1>(by_lane, lane)
{unpack}
  floats = Cast<to = 1>(codes)
  zero_point = Constant<value_float = {zero}>()
  centred = Sub(floats, zero_point)
  scale_tiles = Gather<axis = 0>(scales, tile)
  wide_scales = Cast<to = 1>(scale_tiles)
{split}
  scales_by_lane = Transpose<perm = [0, 2, 1]>({own_scales})
  row_scales = GatherND<batch_dims = 1>(scales_by_lane, lane)
{lower}
  last = Constant<value_ints = [2]>()
  block_scales = Unsqueeze({lowered}, last)
  blocks = Shape<start = 1, end = 2>(scales)
  block_number = Constant<value_int : int = @block_size>()
  block = Reshape(block_number, all)
  block_shape = Concat<axis = 0>(all, blocks, block)
  in_blocks = Reshape(centred, block_shape)
  scaled = Mul(in_blocks, block_scales)
{minima}
  padded_size = Mul(blocks, block)
  flat_shape = Concat<axis = 0>(all, padded_size)
  padded = Reshape({values}, flat_shape)
  rows = Slice(padded, first, size, one)
"""

_FOUR = """
  low_mask = Constant<value = uint8[1] {15}>()
  four = Constant<value = uint8[1] {4}>()
  low = BitwiseAnd(bytes, low_mask)
  high = BitShift<direction = "RIGHT">(bytes, four)
  codes = Concat<axis = 2>(low, high)
"""
_EIGHT = "  codes = Identity(bytes)"

# Codes that stand in the upper bits of 8.
_LOWER = """
  factor = Constant<value = float[1] {{{factor}}}>()
  lowered_scales = Mul(row_scales, factor)
"""
_SPLIT = "  own_scales, minima = Split<axis = 2, num_outputs = 2>(wide_scales)"
_MINIMA = """
  minima_by_lane = Transpose<perm = [0, 2, 1]>(minima)
  row_minima = GatherND<batch_dims = 1>(minima_by_lane, lane)
  block_minima = Unsqueeze(row_minima, last)
  shifted = Add(scaled, block_minima)
"""


def embedding_function(opset: int, bits: int, minimum: bool = False) -> onnx.FunctionProto:
    """The body for codes of 4 to 8 bits, or (16) for float weights of any width, at the model's opset."""
    text = _FUNCTION.format(
        domain=contract.DOMAIN,
        opset=opset,
        name=contract.EMBEDDING,
        inputs=", ".join(contract.EMBEDDING_INPUTS),
        steps=_FLOATS if bits == 16 else _codes(bits, minimum),
    )
    return onnx.parser.parse_function(text)


def _codes(bits: int, minimum: bool) -> str:
    widened = bits in WIDENED
    unpack = {4: _FOUR, 8: _EIGHT}.get(bits) or widened_codes(bits, "bytes", "[-1, {lines}, 4]", None)
    return _CODES.format(
        unpack=unpack,
        zero=0.0 if minimum else float(contract.zero_point(8 if widened else bits)),
        lower=_LOWER.format(factor=2.0 ** (bits - 8)) if widened else "",
        lowered="lowered_scales" if widened else "row_scales",
        split=_SPLIT if minimum else "",
        own_scales="own_scales" if minimum else "wide_scales",
        minima=_MINIMA if minimum else "",
        values="shifted" if minimum else "scaled",
    )
