"""The weights of a head as its graphs hold them: rounded and packed once, the same tensors in every graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np
import onnx_ir as ir

from paceline.export.check import check_matrix
from paceline.export.heads.config import HeadQuant
from paceline.export.minima import quantise_with_minima
from paceline.export.narrow import STORED, fits
from paceline.export.pack import pack, pack_floats
from paceline.export.passes import Floats
from paceline.export.products import packed_attributes
from paceline.export.quantize import Quantised, quantise

BLOCK = 32
"""Rows of a column that share a scale."""
_NARROW = (np.float16, ml_dtypes.bfloat16)
"""Types of 16 bits, of which the first that keeps every value is taken."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix [K, N] of the graphs: the constants that hold it, and the attributes of an operator that reads it."""

    tensors: tuple[str, ...]
    attributes: Mapping[str, int]


@dataclass(slots=True)
class Stored:
    """tensors: by name; once the first graph is written they are those of its file. matrices: by name.

    meant: what the tensors stand for, by the names of the checkpoint. error: the worst relative error of a matrix.
    """

    tensors: dict[str, ir.TensorProtocol] = field(default_factory=dict)
    matrices: dict[str, Matrix] = field(default_factory=dict)
    meant: dict[str, Floats] = field(default_factory=dict)
    error: float = 0.0

    def vector(self, name: str, values: Floats) -> None:
        """Take up a weight that stays as it is."""
        self.tensors[name] = ir.tensor(np.ascontiguousarray(values, np.float32), name=name)
        self.meant[name] = values

    def whole(self, name: str, values: np.ndarray) -> None:
        """Take up a table of whole numbers."""
        self.tensors[name] = ir.tensor(np.ascontiguousarray(values, np.int64), name=name)

    def matrix(
        self, title: str, name: str, parts: Mapping[str, Floats], quant: HeadQuant, *, exact: bool = False
    ) -> None:
        """Take up weights [N, K] side by side as one matrix [K, N]. Raises ExportError if it is not what was meant.

        exact: products by it take their inputs as they are.
        """
        values = np.concatenate(list(parts.values())).T
        quantised = _rounded(values, quant, exact)
        if quantised is None or quantised.scales.dtype != np.float16:
            dense = self._floats(name, values)
        else:
            packed = pack(quantised)
            check_matrix(f"{title}: {name}", values, quantised, packed)
            assert packed.scales is not None
            names = f"{name}.q{packed.bits}", f"{name}.scales"
            self.tensors[names[0]] = ir.tensor(packed.weights, name=names[0])
            self.tensors[names[1]] = ir.tensor(packed.scales, name=names[1])
            attributes = packed_attributes(packed.bits, packed.block, packed.k, packed.n, exact=exact)
            self.matrices[name] = Matrix(names, attributes)
            dense = quantised.dense(0, quantised.n)
            self.error = max(self.error, quantised.error)
        ends = np.cumsum([len(part) for part in parts.values()])[:-1]
        self.meant |= dict(zip(parts, np.split(dense, ends), strict=True))

    def _floats(self, name: str, values: Floats) -> Floats:
        kind = next((kind for kind in _NARROW if fits(values, kind, lossless=True)), np.float32)
        stored = f"{name}.{STORED[np.dtype(kind).name][0]}"
        self.tensors[stored] = ir.tensor(pack_floats(values, kind), name=stored)
        bits = np.dtype(kind).itemsize * 8
        self.matrices[name] = Matrix((stored,), packed_attributes(bits, 0, *values.shape))
        return values.T


def _rounded(values: Floats, quant: HeadQuant, exact: bool) -> Quantised | None:
    if quant == "none":
        return None
    found = quantise(values, 8, BLOCK) if quant == "int8" else quantise_with_minima(values, 4, BLOCK)
    return replace(found, exact=exact)
