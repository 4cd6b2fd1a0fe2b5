"""Steps of ONNX function bodies that bring packed codes of 5 and 6 bits to 8, for products and for the embedding."""

from __future__ import annotations

from paceline.runtime.ops.packed_matmul import UNIT

WIDENED = (5, 6)
"""Bits whose codes are widened."""

_STEPS = """
  unit_shape = Constant<value_ints = {shape}>()
  plain_units = Reshape({source}, unit_shape)
{turn}
  line_counts = Constant<value_ints = [1, {low_lines}]>()
  upper, low = Split<axis = -2>(units, line_counts)
  left = Constant<value = uint8[1] {{{left}}}>()
  right = Constant<value = uint8[1] {{{right}}}>()
  even_quads = BitShift<direction = "LEFT">(low, left)
  odd_quads = BitShift<direction = "RIGHT">(low, right)
  quads = Concat<axis = -1>(even_quads, odd_quads)
  low_mask = Constant<value = uint8[1] {{{low_mask}}}>()
  low_bits = BitwiseAnd(quads, low_mask)
  both_upper = Concat<axis = -1>(upper, upper)
  shifts = Constant<value = uint8[{low_lines}, 8] {{{shifts}}}>()
  raised = BitShift<direction = "LEFT">(both_upper, shifts)
  upper_mask = Constant<value = uint8[1] {{{upper_mask}}}>()
  upper_bits = BitwiseAnd(raised, upper_mask)
  codes = BitwiseOr(low_bits, upper_bits)
"""


def widened_codes(bits: int, source: str, shape: str, turn: str | None) -> str:
    """Steps from `source`, packed codes, to `codes`, uint8[.., units, lines, 8], each shifted to the top of its 8 bits.

    shape: of the units, [.., units, {lines}, .., 4], where {lines} stands for how many lines a unit has. turn: the
    permutation that brings these to [.., units, lines, 4], or None.
    """
    more = bits - 4
    low_lines = UNIT[bits] // 8
    # Line L has quad 2L below and quad 2L + 1 above; the upper bits of quad q are the q-th from below.
    shifts = [
        8 - more * (2 * line + half + 1) for line in range(low_lines) for half in (0, 1) for _ in range(4)
    ]
    return _STEPS.format(
        source=source,
        shape=shape.format(lines=low_lines + 1),
        turn=f"  units = Transpose<perm = {turn}>(plain_units)"
        if turn
        else "  units = Identity(plain_units)",
        low_lines=low_lines,
        left=8 - bits,
        right=more,
        low_mask=(15 << (8 - bits)) & 255,
        shifts=", ".join(map(str, shifts)),
        upper_mask=(0xFF << (8 - more)) & 255,
    )
