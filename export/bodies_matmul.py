"""ONNX function bodies of the packed products: what ONNX Runtime runs where the native library is absent.

Codes are only reordered, never dequantised: ONNX Runtime folds everything that depends on weights alone when
it loads a graph, and a folded float32 matrix would take eight times the memory. It keeps every folded step
until the last one is done, so the steps are few: 4-bit codes stay as they lie, and x is reordered to them.
MatMulNBits has no codes of 5 and 6 bits: they become the upper bits of 8. Minima, which it has not either, are a
product of their own: what the code of zero stands for, times the sums of x over each block.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx.parser

from paceline.export.bodies_codes import WIDENED, widened_codes
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
  turned_scales = Transpose<perm = [0, 2, 1]>({scales})
  scale_shape = Concat<axis = 0>(all, blocks)
  padded_scales = Reshape(turned_scales, scale_shape)
"""

# A block that MatMulNBits does not know is cut in pieces that it knows, with a scale for each.
_PIECES = """
  sixteen = Constant<value_ints = [16]>()
  piece = Constant<value_ints = [{piece}]>()
  piece_bytes = Constant<value_ints = [{piece_bytes}]>()
  block_number = Constant<value_int : int = @block_size>()
  block_rows = Reshape(block_number, all)
  repeats = Div(block_rows, piece)
  tiles = Shape<start = 0, end = 1>(scales)
  blocks = Shape<start = 1, end = 2>(scales)
  padded_columns = Mul(tiles, sixteen)
  block_shape = Concat<axis = 0>(padded_columns, all, piece_bytes)
  padded = Reshape({codes}, block_shape)
  turned_scales = Transpose<perm = [0, 2, 1]>({scales})
  apart_shape = Concat<axis = 0>(padded_columns, blocks, one)
  apart_scales = Reshape(turned_scales, apart_shape)
  repeated_shape = Concat<axis = 0>(padded_columns, blocks, repeats)
  repeated_scales = Expand(apart_scales, repeated_shape)
  scale_shape = Concat<axis = 0>(padded_columns, all)
  padded_scales = Reshape(repeated_scales, scale_shape)
"""

_CUT = "  {out} = Slice(padded{what}, first, columns, first)"

_NBITS = """
  flat_scales = Reshape({scales}, all)
  wide_scales = Cast<to = 1>(flat_scales)
{lower}
  {out} = com.microsoft.MatMulNBits<K : int = @K, N : int = @N, bits = {bits}, {block}, \
accuracy_level = {accuracy}>({x}, {codes}, {lowered}, , , bias)
"""

# Codes that stand in the upper bits of 8.
_LOWER = """
  factor = Constant<value = float[1] {{{factor}}}>()
  lowered_scales = Mul(wide_scales, factor)
"""

_SPLIT_SCALES = "  own_scales, minima = Split<axis = 2, num_outputs = 2>(scales)"

# The sums of x over blocks times minimum + zero point * scale.
_MINIMA = """
  zero_point = Constant<value = float[1] {{{zero}}}>()
  wide_minima = Cast<to = 1>(minima)
  unmoved_scales = Cast<to = 1>(own_scales)
  moved = Mul(unmoved_scales, zero_point)
  lowest = Add(wide_minima, moved)
  turned_lowest = Transpose<perm = [1, 0, 2]>(lowest)
  lowest_shape = Constant<value_ints = [0, -1]>()
  padded_lowest = Reshape(turned_lowest, lowest_shape)
{cut}
  leading = Shape<start = 0, end = -1>({x})
  sum_number = Constant<value_int : int = @block_size>()
  sum_rows = Reshape(sum_number, all)
{fill}
  sum_shape = Concat<axis = 0>(leading, blocks, sum_rows)
  in_blocks = Reshape<allowzero = 1>({filled}, sum_shape)
  sums = ReduceSum<keepdims = 0>(in_blocks, all)
  of_minima = MatMul(sums, {lowest})
  {out} = Add(of_codes, of_minima)
"""

_FILL = """
  zero = Constant<value = float[1] {{0.0}}>()
  rows_number = Constant<value_int : int = @K>()
  own_rows = Reshape(rows_number, all)
  padded_rows = Mul(blocks, sum_rows)
  lacking = Sub(padded_rows, own_rows)
  filling_shape = Concat<axis = 0>(leading, lacking)
  filling = Expand(zero, filling_shape)
  filled = Concat<axis = -1>({x}, filling)
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

_NBITS_BLOCKS = (128, 64, 32, 16)
"""Of those that MatMulNBits takes."""


@dataclass(frozen=True, slots=True)
class Form:
    """What all nodes that share a body have in common; it is made for that, as it cannot branch.

    bits: 4, 5, 6, 8, or 16 for float weights of any width. minimum: whether blocks have one. piece: how many rows of a
    block go together where MatMulNBits does not know the block, else 0. even_k: all K are multiples of 8. whole: all K
    are multiples of the block. even_n: all N are multiples of 16. biased: whether there is a bias (told for float
    weights only). activation: of Glu, else "".
    """

    bits: int
    minimum: bool
    piece: int
    even_k: bool
    whole: bool
    even_n: bool
    exact: bool
    biased: bool
    activation: str


def piece_of(k: int, block: int) -> int:
    """Rows of a block that MatMulNBits takes as a block; 0 if it takes the block itself. Raises ValueError."""
    if block in _NBITS_BLOCKS:
        return 0
    for piece in _NBITS_BLOCKS:
        if block % piece == 0 and contract.padded(k, piece) == contract.padded(k, block):
            return piece
    raise ValueError(f"{k} rows in blocks of {block} have no function body: MatMulNBits has no such blocks")


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
    own_x, scales = x, "own_scales" if form.minimum else "scales"
    steps = [_SPLIT_SCALES] if form.minimum else []
    codes, widened = "rows", form.bits in WIDENED
    if widened:
        steps.append(widened_codes(form.bits, "weights", "[0, -1, {lines}, 16, 4]", "[0, 3, 1, 2, 4]"))
        codes = "codes"
    else:
        steps.append(_LANES)
    if form.bits == 4 and form.even_k:
        steps.append(_REORDERED_X.format(x=x, out="reordered"))
        x = "reordered"
    elif form.bits == 4:
        steps.append(_REORDERED_CODES)
        codes = "codes"
    per_byte = 2 if form.bits == 4 else 1
    if form.piece:
        piece_bytes = form.piece // per_byte
        steps.append(_PIECES.format(codes=codes, scales=scales, piece=form.piece, piece_bytes=piece_bytes))
        block = f"block_size = {form.piece}"
    else:
        steps.append(_BLOCKS.format(codes=codes, scales=scales, per_byte=per_byte))
        block = "block_size : int = @block_size"
    codes, scales = "padded", "padded_scales"
    if not form.even_n:
        steps += [_CUT.format(what="", out="cut"), _CUT.format(what="_scales", out="cut_scales")]
        codes, scales = "cut", "cut_scales"
    steps.append(
        _NBITS.format(
            x=x,
            codes=codes,
            scales=scales,
            lower=_LOWER.format(factor=2.0 ** (form.bits - 8)) if widened else "",
            lowered="lowered_scales" if widened else "wide_scales",
            bits=4 if form.bits == 4 else 8,
            block=block,
            accuracy=1 if form.exact else 4,
            out="of_codes" if form.minimum else out,
        )
    )
    if form.minimum:
        steps.append(_minima(form, own_x, out))
    return "\n".join(steps)


def _minima(form: Form, x: str, out: str) -> str:
    """What the minima add to the product of the codes."""
    cut = "" if form.even_n else "  lowest_cut = Slice(padded_lowest, first, columns, one)"
    return _MINIMA.format(
        x=x,
        zero=float(contract.zero_point(form.bits)),
        cut=cut,
        fill="" if form.whole else _FILL.format(x=x),
        filled=x if form.whole else "filled",
        lowest="lowest_cut" if cut else "padded_lowest",
        out=out,
    )
