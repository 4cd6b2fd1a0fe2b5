"""What graphs of all heads are written of: taps, tokens, products, and the choice of a token."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from paceline.export.heads.config import HeadConfig, Style
from paceline.export.heads.stored import Stored
from paceline.export.writer import GraphWriter
from paceline.runtime.ops import packed_matmul as products

EMBED, HEAD, FUSE = "embed", "head", "fc"
"""Matrices that every head has; a tied head has no HEAD."""
IDS, ROWS = "vocabulary.ids", "vocabulary.rows"
"""From a row of the head's vocabulary to the target's id, and back; a head with the target's vocabulary has neither."""
FINAL = "final_norm.weight"
INTEGER = ir.DataType.INT64


class HeadWriter(GraphWriter):
    """Writes one graph of a head, in which all its weights stand whether it reads them or not."""

    def __init__(self, config: HeadConfig, style: Style, stored: Stored) -> None:
        super().__init__()
        self.config, self.style, self._stored = config, style, stored
        for name, tensor in stored.tensors.items():
            shape = [int(str(size)) for size in tensor.shape]
            self.constants[name] = ir.val(name, tensor.dtype, shape, const_value=tensor)

    def vector(self, name: str) -> ir.Value:
        """A weight that is no matrix."""
        return self.constants[name]

    def norm(self, x: ir.Value, weight: str) -> ir.Value:
        """RMS norm of the last axis."""
        attributes = {"axis": -1, "epsilon": self.config.epsilon}
        return self.node("RMSNormalization", [x, self.vector(weight)], x.shape, attributes)

    def product(
        self,
        x: ir.Value,
        name: str,
        *,
        norm: str | None = None,
        residual: ir.Value | None = None,
        bias: str | None = None,
    ) -> ir.Value:
        """x times a matrix, of x normed by a weight if one is named, and what is to be added."""
        operator = f"{'Norm' if norm else ''}QMatMul{'Add' if residual is not None else ''}"
        return self._product(operator, x, name, 1, norm, residual, bias)

    def gated(self, x: ir.Value, name: str, norm: str) -> ir.Value:
        """SiLU of the first half of the columns times the second, of x normed."""
        return self._product("NormQMatMulGlu", x, name, 2, norm, None, None)

    def _product(
        self,
        operator: str,
        x: ir.Value,
        name: str,
        halves: int,
        norm: str | None,
        residual: ir.Value | None,
        bias: str | None,
    ) -> ir.Value:
        matrix = self._stored.matrices[name]
        weights, *scales = (self.constants[tensor] for tensor in matrix.tensors)
        operands = {
            "x": x,
            "norm": self.vector(norm) if norm else None,
            "residual": residual,
            "weights": weights,
            "scales": scales[0] if scales else None,
            "bias": self.vector(bias) if bias else None,
        }
        inputs = [operands[what] for what in products.PRODUCTS[operator]]
        while inputs[-1] is None:
            inputs.pop()
        attributes: dict[str, int | float | str] = dict(matrix.attributes)
        if norm:
            attributes["epsilon"] = self.config.epsilon
        if halves == 2:
            attributes["activation"] = "silu"
        shape = [*_dims(x)[:-1], matrix.attributes["N"] // halves]
        return self.node(operator, inputs, shape, attributes, domain=products.DOMAIN)

    def silu(self, x: ir.Value) -> ir.Value:
        """x times its sigmoid."""
        return self.node("Mul", [x, self.node("Sigmoid", [x], x.shape)], x.shape)

    def joined(
        self, values: Sequence[ir.Value], axis: int, dtype: ir.DataType = ir.DataType.FLOAT
    ) -> ir.Value:
        """Values side by side; one alone is itself."""
        if len(values) == 1:
            return values[0]
        shape = list(_dims(values[0]))
        if isinstance(shape[axis], int):
            shape[axis] = sum(int(str(_dims(value)[axis])) for value in values)
        return self.node("Concat", values, shape, {"axis": axis}, dtype)

    def first(self, x: ir.Value, purpose: str, axis: int) -> ir.Value:
        """x with one more axis, of size 1."""
        shape = list(_dims(x))
        shape.insert(axis, 1)
        return self.node("Unsqueeze", [x, self.whole(purpose, axis)], shape, dtype=x.dtype or INTEGER)

    def rows(self, x: ir.Value, rows: ir.Value) -> ir.Value:
        """Chosen rows of [T, ...]."""
        return self.node("Gather", [x, rows], ("R", *_dims(x)[1:]), {"axis": 0})

    def fused(self, features: ir.Value) -> ir.Value:
        """What the taps side by side, [T, F], say together: [T, H]."""
        taps = len(self.config.taps)
        if not self.style.fused:
            return features
        if not self.style.normed_taps:
            return self.product(features, FUSE)
        if taps == 1:
            return self.product(features, FUSE, norm="tap_norms.0.weight")
        shape = (*_dims(features)[:-1], self.config.hidden)
        pieces = self.nodes("Split", [features], [shape] * taps, {"axis": -1, "num_outputs": taps})
        normed = [self.norm(piece, f"tap_norms.{i}.weight") for i, piece in enumerate(pieces)]
        return self.product(self.joined(normed, -1), FUSE)

    def own_rows(self, token_ids: ir.Value) -> ir.Value:
        """Rows of the head's table for ids of the target; all that it does not know share the last one."""
        if self.config.whole or self.style.whole_table:
            return token_ids
        table = self.constants[ROWS]
        return self.node("Gather", [table, token_ids], _dims(token_ids), {"axis": 0}, INTEGER)

    def chosen_embedded(self, best: ir.Value) -> ir.Value:
        """The same of rows of the vocabulary that were chosen."""
        return self.embedded(self.ids(best) if self.style.whole_table else best)

    def ids(self, best: ir.Value) -> ir.Value:
        """Ids of the target of rows of the vocabulary."""
        if self.config.whole:
            return best
        return self.node("Gather", [self.constants[IDS], best], _dims(best), {"axis": 0}, INTEGER)

    def embedded(self, rows: ir.Value) -> ir.Value:
        """Rows of the head's table, [..., H]."""
        matrix = self._stored.matrices[EMBED]
        inputs = [rows, *(self.constants[tensor] for tensor in matrix.tensors)]
        attributes = {name: matrix.attributes[name] for name in products.ATTRIBUTES}
        shape = (*_dims(rows), self.config.hidden)
        return self.node(products.EMBEDDING, inputs, shape, attributes, domain=products.DOMAIN)

    def logits(self, x: ir.Value) -> ir.Value:
        """Of states [R, H], [R, Vd]."""
        if not self.config.tied:
            return self.product(x, HEAD, norm=FINAL if self.style.last_norm == "logits" else None)
        wide, cut = self.product(x, EMBED), (_dims(x)[0], self.config.vocab)
        ends = [self.whole("zero", 0), self.whole("vocabulary", self.config.vocab), self.whole("one", 1)]
        return self.node("Slice", [wide, *ends, self.whole("step", 1)], cut)

    def noise(self, depth: int) -> tuple[ir.Value, Sequence[ir.Value]]:
        """The input of noise, and a row [1, Vd] of it for each level."""
        given = self.input("noise", ir.DataType.FLOAT, depth, self.config.vocab)
        if depth == 1:
            return given, [given]
        shapes = [(1, self.config.vocab)] * depth
        return given, self.nodes("Split", [given], shapes, {"axis": 0, "num_outputs": depth})

    def chosen(self, logits: ir.Value, noise: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Scores [R, Vd] of rows, and the best row of the vocabulary for each, int64[R]."""
        scores = self.node("Add", [logits, noise], logits.shape)
        return scores, self.node("ArgMax", [scores], _dims(scores)[:1], {"axis": -1, "keepdims": 0}, INTEGER)

    def drafted(self, chosen: ir.Value, scores: ir.Value) -> list[ir.Value]:
        """The outputs of a graph that drafts: int64[D] as ids of the target, and scores [D, Vd]."""
        tokens = self.ids(chosen)
        tokens.name, scores.name = "tokens", "scores"
        return [tokens, scores]


def _dims(value: ir.Value) -> tuple[int | str | ir.SymbolicDim, ...]:
    assert value.shape is not None
    return tuple(value.shape.dims)
