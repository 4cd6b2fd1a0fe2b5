"""ONNX function bodies of the packed products: what ONNX Runtime runs where the native library is absent.

Codes are only reordered, never dequantised: ONNX Runtime folds everything that depends on weights alone when
it loads a graph, and a folded float32 matrix would take eight times the memory. It keeps every folded step
until the last one is done, so the steps are few: 4-bit codes stay as they lie, and x is reordered to them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
import onnx.parser

from paceline.runtime.ops import packed_matmul as contract

_FUNCTION = """
<domain: "{domain}", opset_import: ["" : {opset}, "com.microsoft" : 1]>
{name} <K: int, N: int, bits: int, block_size: int, activation_bits: int = 8{more}> ({inputs}) => (y) {{
  first = Constant<value_ints = [0]>()
  one = Constant<value_ints = [1]>()
  all = Constant<value_ints = [-1]>()
  columns_number = Constant<value_int : int = @N>()
  columns = Reshape(columns_number, all)
{steps}
}}
"""

_NORM = "  {out} = RMSNormalization<axis = -1, epsilon : float = @epsilon>({x}, norm)"

# Byte j of a line holds rows j and 4 + j of its 8, and MatMulNBits reads rows 2 j and 2 j + 1 there.
_REORDERED_X = """
  eights = Constant<value_ints = [-1, 2, 4]>()
  x_shape = Shape({x})
  x_eights = Reshape({x}, eights)
  x_turned = Transpose<perm = [0, 2, 1]>(x_eights)
  {out} = Reshape<allowzero = 1>(x_turned, x_shape)
"""

_LANES = """
  lanes_shape = Constant<value_ints = [0, 0, 16, 4]>()
  lanes = Reshape(weights, lanes_shape)
  rows = Transpose<perm = [0, 2, 1, 3]>(lanes)
"""

# Rows 0 4, 1 5, 2 6, 3 7 of a line to rows 0 1, 2 3, 4 5, 6 7.
_REORDERED_CODES = """
  low_mask = Constant<value = uint8[1, 1] {15}>()
  high_mask = Constant<value = uint8[1, 1] {240}>()
  four = Constant<value = uint8[1, 1] {4}>()
  twos = Constant<value_ints = [-1, 2]>()
  pairs = Reshape(rows, twos)
  turned_pairs = Transpose<perm = [1, 0]>(pairs)
  even, odd = Split<axis = 0, num_outputs = 2>(turned_pairs)
  even_low = BitwiseAnd(even, low_mask)
  odd_low = BitShift<direction = "LEFT">(odd, four)
  low = BitwiseOr(even_low, odd_low)
  even_high = BitShift<direction = "RIGHT">(even, four)
  odd_high = BitwiseAnd(odd, high_mask)
  high = BitwiseOr(even_high, odd_high)
  apart = Constant<value_ints = [1, -1, 2]>()
  low_pairs = Reshape(low, apart)
  high_pairs = Reshape(high, apart)
  both = Concat<axis = 0>(low_pairs, high_pairs)
  codes = Transpose<perm = [1, 0, 2]>(both)
"""

_BLOCKS = """
  per_byte = Constant<value_int = {per_byte}>()
  block_rows = Constant<value_int : int = @block_size>()
  block_number = Div(block_rows, per_byte)
  block_bytes = Reshape(block_number, all)
  blocks = Shape<start = 1, end = 2>(scales)
  block_shape = Concat<axis = 0>(all, blocks, block_bytes)
  padded = Reshape({codes}, block_shape)
  turned_scales = Transpose<perm = [0, 2, 1]>(scales)
  scale_shape = Concat<axis = 0>(all, blocks)
  padded_scales = Reshape(turned_scales, scale_shape)
"""

# MatMulNBits knows no scale per column: each is repeated for pieces of the column.
_PER_COLUMN = """
  sixteen = Constant<value_ints = [16]>()
  piece = Constant<value_ints = [{piece}]>()
  tiles = Shape<start = 0, end = 1>(scales)
  padded_columns = Mul(tiles, sixteen)
  block_shape = Concat<axis = 0>(padded_columns, all, piece)
  padded = Reshape({codes}, block_shape)
  pieces = Shape<start = 1, end = 2>(padded)
  column_shape = Concat<axis = 0>(all, one)
  column_scales = Reshape(scales, column_shape)
  scale_shape = Concat<axis = 0>(padded_columns, pieces)
  padded_scales = Expand(column_scales, scale_shape)
"""

_CUT = "  {out} = Slice(padded{what}, first, columns, first)"

_NBITS = """
  flat_scales = Reshape({scales}, all)
  wide_scales = Cast<to = 1>(flat_scales)
  {out} = com.microsoft.MatMulNBits<K : int = @K, N : int = @N, bits : int = @bits, {block}, \
accuracy_level = {accuracy}>({x}, {codes}, wide_scales, , , bias)
"""

_DENSE = """
  turned = Transpose<perm = [1, 0, 2]>(weights)
  flat_shape = Constant<value_ints = [0, -1]>()
  narrow = Reshape(turned, flat_shape)
  padded = Cast<to = 1>(narrow)
"""

_GATE = "  gate, up = Split<axis = -1, num_outputs = 2>(product)\n"
_ACTIVATIONS = {
    "silu": "  open = Sigmoid(gate)\n  bent = Mul(gate, open)\n",
    "gelu": '  bent = Gelu<approximate = "none">(gate)\n',
    "gelu_tanh": '  bent = Gelu<approximate = "tanh">(gate)\n',
}

_PIECES = (128, 32)


@dataclass(frozen=True, slots=True)
class Form:
    """What all nodes of one operator share in a model; its body is made for that, as it cannot branch.

    bits: 4, 8, or 16 for float weights of any width. even_k: all K are multiples of 8. even_n: all N are multiples
    of 16. piece: how many rows of a column go together where scales are per column, else 0; it divides the
    padded K. biased: whether there is a bias (told for float weights only). activation: of Glu, else "".
    """

    bits: int
    even_k: bool
    even_n: bool
    piece: int
    exact: bool
    biased: bool
    activation: str


def column_piece(rows: Iterable[int]) -> int:
    """Rows in which bodies repeat a scale per column: the most that pads none of these numbers of rows, or 32."""
    counts = list(rows)
    return next((piece for piece in _PIECES if all(k % piece == 0 for k in counts)), _PIECES[-1])


def product_function(name: str, opset: int, form: Form) -> onnx.FunctionProto:
    """The body of one of the products. `opset` must be the model's own, against which ONNX Runtime inlines."""
    steps, x = [], "x"
    if "norm" in contract.PRODUCTS[name]:
        steps.append(_NORM.format(x=x, out="normed"))
        x = "normed"
    last = {"Glu": "product", "Add": "product"}.get(name[-3:], "y")
    steps.append(_dense(form, x, last) if form.bits == 16 else _blocked(form, x, last))
    if name.endswith("Glu"):
        steps.append(_GATE + _ACTIVATIONS[form.activation] + "  y = Mul(bent, up)")
    elif name.endswith("Add"):
        steps.append("  y = Add(residual, product)")
    more = ""
    if "norm" in contract.PRODUCTS[name]:
        more += ", epsilon: float = 1.0e-6"
    if form.activation:
        more += f', activation: string = "{form.activation}"'
    text = _FUNCTION.format(
        domain=contract.DOMAIN,
        opset=opset,
        name=name,
        more=more,
        inputs=", ".join(contract.PRODUCTS[name]),
        steps="\n".join(steps),
    )
    return onnx.parser.parse_function(text)


def _dense(form: Form, x: str, out: str) -> str:
    """x times float weights, which are folded to one float32 matrix."""
    steps, matrix = [_DENSE], "padded"
    if not form.even_n:
        steps.append("  matrix = Slice(padded, first, columns, one)")
        matrix = "matrix"
    steps.append(f"  {'raw' if form.biased else out} = MatMul({x}, {matrix})")
    if form.biased:
        steps.append(f"  {out} = Add(raw, bias)")
    return "\n".join(steps)


def _blocked(form: Form, x: str, out: str) -> str:
    """x times codes, by MatMulNBits."""
    steps, codes = [_LANES], "rows"
    if form.bits == 4 and form.even_k:
        steps.append(_REORDERED_X.format(x=x, out="reordered"))
        x = "reordered"
    elif form.bits == 4:
        steps.append(_REORDERED_CODES)
        codes = "codes"
    if form.piece:
        steps.append(_PER_COLUMN.format(codes=codes, piece=form.piece))
        block = f"block_size = {form.piece}"
    else:
        steps.append(_BLOCKS.format(codes=codes, per_byte=8 // form.bits))
        block = "block_size : int = @block_size"
    codes, scales = "padded", "padded_scales"
    if not form.even_n:
        steps += [_CUT.format(what="", out="cut"), _CUT.format(what="_scales", out="cut_scales")]
        codes, scales = "cut", "cut_scales"
    accuracy = 1 if form.exact else 4
    steps.append(_NBITS.format(x=x, codes=codes, scales=scales, block=block, accuracy=accuracy, out=out))
    return "\n".join(steps)
