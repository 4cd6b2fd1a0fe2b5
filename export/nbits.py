"""A quantised matrix in the layout of ONNX Runtime's MatMulNBits, which every ONNX Runtime has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from paceline.export.quantize import Codes, Quantised
from paceline.runtime.ops.packed_matmul import zero_point

FULL = 1
"""The accuracy level of MatMulNBits at which it takes x in float32."""
_ROUNDED = 4
"""At which it rounds x to 8 bits."""
_BITS = (4, 8)


def nbits_form(quantised: Quantised) -> Quantised | None:
    """The same matrix with codes that MatMulNBits takes, 5 and 6 bits as 8; None where there are minima."""
    if quantised.minima is not None:
        return None
    if quantised.bits in _BITS:
        return quantised
    codes = quantised.codes + np.uint8(zero_point(8) - zero_point(quantised.bits))
    return replace(quantised, codes=codes, bits=8)


def nbits_codes(quantised: Quantised) -> Codes:
    """uint8[N, blocks, block * bits / 8], the earlier of two codes in the low half of a byte."""
    codes = quantised.codes
    if quantised.bits == 4:
        codes = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    return codes.reshape(*quantised.scales.shape, -1)


def nbits_attributes(quantised: Quantised) -> dict[str, int]:
    """Attributes of the MatMulNBits node that multiplies by a matrix."""
    return {
        "K": quantised.k,
        "N": quantised.n,
        "bits": quantised.bits,
        "block_size": quantised.block,
        "accuracy_level": FULL if quantised.exact else _ROUNDED,
    }
