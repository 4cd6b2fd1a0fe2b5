"""The ONNX function body of `paceline::QEmbedding`: it unpacks the rows that are asked for and no others."""

from __future__ import annotations

import onnx
import onnx.parser

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
  centred = Sub(floats, zero_point)
  scale_tiles = Gather<axis = 0>(scales, tile)
  wide_scales = Cast<to = 1>(scale_tiles)
  scales_by_lane = Transpose<perm = [0, 2, 1]>(wide_scales)
  row_scales = GatherND<batch_dims = 1>(scales_by_lane, lane)
  last = Constant<value_ints = [2]>()
  block_scales = Unsqueeze(row_scales, last)
  blocks = Shape<start = 1, end = 2>(scales)
  block_number = Constant<value_int : int = @block_size>()
  block = Reshape(block_number, all)
  block_shape = Concat<axis = 0>(all, blocks, block)
  in_blocks = Reshape(centred, block_shape)
  scaled = Mul(in_blocks, block_scales)
  padded_size = Mul(blocks, block)
  flat_shape = Concat<axis = 0>(all, padded_size)
  padded = Reshape(scaled, flat_shape)
  rows = Slice(padded, first, size, one)
"""

_UNPACK = {
    4: """
  zero_point = Constant<value_float = 8.0>()
  low_mask = Constant<value = uint8[1] {15}>()
  four = Constant<value = uint8[1] {4}>()
  low = BitwiseAnd(bytes, low_mask)
  high = BitShift<direction = "RIGHT">(bytes, four)
  codes = Concat<axis = 2>(low, high)
""",
    8: """
  zero_point = Constant<value_float = 128.0>()
  codes = Identity(bytes)
""",
}


def embedding_function(opset: int, bits: int) -> onnx.FunctionProto:
    """The body for codes of 4 or 8 bits, or (16) for float weights of any width, at the model's opset."""
    text = _FUNCTION.format(
        domain=contract.DOMAIN,
        opset=opset,
        name=contract.EMBEDDING,
        inputs=", ".join(contract.EMBEDDING_INPUTS),
        steps=_FLOATS if bits == 16 else _CODES.format(unpack=_UNPACK[bits]),
    )
    return onnx.parser.parse_function(text)
