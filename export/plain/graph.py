"""The graph of a decoder as tracing it in torch leaves it, written node by node.

What `capture` makes of these families is one run of nodes a layer; here the same run is written without torch, in the
same order, under names of parameters that are the same, and goes through the same passes. tests/test_plain.py compares
the bundles byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from paceline.export.order import check_taps
from paceline.export.passes import Floats
from paceline.export.plain.decoder import Decoder
from paceline.export.writer import GraphWriter
from paceline.runtime.ops import tree_attention as contract

_HEADS_FIRST = [0, 2, 1, 3]
_INTEGER = ir.DataType.INT64


def plain_graph(decoder: Decoder, weights: Mapping[str, Floats], taps: Sequence[str] = ()) -> ir.Model:
    """The graph of a decoder that follows the graph contract; weights by transformers' names, as `Decoder.shapes`.

    taps: extra outputs, as `capture` has them. Raises ExportError for one that there is not.
    """
    check_taps(taps, decoder.layers)
    return _Writer(decoder, weights).written(taps)


class _Writer(GraphWriter):
    """Writes one graph. A value is [1, T, ...] unless it says otherwise."""

    def __init__(self, decoder: Decoder, weights: Mapping[str, Floats]) -> None:
        super().__init__()
        self._decoder, self._weights = decoder, weights
        self._lifted = 0
        """Weights and biases of projections are numbered as tracing meets them."""

    def written(self, taps: Sequence[str]) -> ir.Model:
        d, tapped = self._decoder, dict[str, ir.Value]()
        token_ids, positions = (
            self.input("token_ids", _INTEGER, "T"),
            self.input("positions", _INTEGER, "T"),
        )
        tree_mask, past_len = (
            self.input("tree_mask", ir.DataType.BOOL, "T", "W"),
            self.input("past_len", _INTEGER, 1),
        )
        rows = self.input("rows", _INTEGER, "R")
        caches = [
            [
                self.input(f"{part}.{i}", ir.DataType.FLOAT, d.kv_heads, "S", d.head_dim)
                for i in range(d.layers)
            ]
            for part in ("cache_k", "cache_v")
        ]
        self._vectors()
        zero = self.whole("zero", 0)
        ids = self.node("Unsqueeze", [token_ids, zero], (1, "T"), dtype=_INTEGER)
        table = self._parameter("lm_head.weight" if d.tied else "model.embed_tokens.weight")
        x = self.node("Gather", [table, ids], (1, "T", d.hidden), {"axis": 0})
        cos, sin = self._angles(positions)
        shared = (past_len, tree_mask, positions)
        new_k, new_v = [], []
        for number in range(d.layers):
            if number == 0:
                halves: Sequence[ir.Value] = ()
            x, key, value, halves = self._layer(
                number, x, (cos, sin), halves, (caches[0][number], caches[1][number], *shared)
            )
            new_k.append(key)
            new_v.append(value)
            if (tap := f"hidden.{number}") in taps:
                tapped[tap] = self.node("Squeeze", [x, zero], ("T", d.hidden))
        x = self._norm(x, "model.norm.weight")
        if "hidden" in taps:
            tapped["hidden"] = self.node("Squeeze", [x, zero], ("T", d.hidden))
        x = self.node("Squeeze", [x, zero], ("T", d.hidden))
        flat = self.node("Reshape", [rows, self.whole("all", -1)], (None,), {"allowzero": 0}, _INTEGER)
        x = self.node("Gather", [x, flat], ("R", d.hidden), {"axis": 0})
        logits = self._linear(x, "lm_head", d.vocab, ("R",))
        logits.name = "logits"
        for tap, value in tapped.items():
            value.name = tap
        outputs = [logits, *(tapped[tap] for tap in taps)]
        for part, found in (("new_k", new_k), ("new_v", new_v)):
            for i, value in enumerate(found):
                outputs.append(self.node("Squeeze", [value, zero], (d.kv_heads, "T", d.head_dim)))
                outputs[-1].name = f"{part}.{i}"
        inputs = [token_ids, positions, tree_mask, past_len, rows, *caches[0], *caches[1]]
        return self.model(inputs, outputs)

    def _vectors(self) -> None:
        """Take up the parameters that are no matrices of projections in the order in which torch knows them."""
        d = self._decoder
        names = [] if d.tied else ["model.embed_tokens.weight"]
        for number in range(d.layers):
            at = f"model.layers.{number}"
            heads = (
                [f"{at}.self_attn.q_norm.weight", f"{at}.self_attn.k_norm.weight"] if d.normed_heads else []
            )
            names += [*heads, f"{at}.input_layernorm.weight", f"{at}.post_attention_layernorm.weight"]
        for name in [*names, "model.norm.weight", *(["lm_head.weight"] if d.tied else [])]:
            self._parameter(name)
        self.constant("model.model.rotary_emb.inv_freq", d.frequencies)

    def _angles(self, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
        half = self._decoder.head_dim // 2
        x = self.node("Unsqueeze", [positions, self.whole("ends", 0, 2)], (1, "T", 1), dtype=_INTEGER)
        x = self.node("Cast", [x], (1, "T", 1), {"to": int(ir.DataType.FLOAT)})
        x = self.node("Mul", [x, self.constants["model.model.rotary_emb.inv_freq"]], (1, "T", half))
        x = self.node("Concat", [x, x], (1, "T", 2 * half), {"axis": -1})
        return self.node("Cos", [x], (1, "T", 2 * half)), self.node("Sin", [x], (1, "T", 2 * half))

    def _layer(
        self,
        number: int,
        x: ir.Value,
        angles: tuple[ir.Value, ir.Value],
        halves: Sequence[ir.Value],
        cache: Sequence[ir.Value],
    ) -> tuple[ir.Value, ir.Value, ir.Value, Sequence[ir.Value]]:
        """One layer: its result, new keys and values [1, heads, T, D], and the halves of the tables, cut once."""
        d, at = self._decoder, f"model.layers.{number}"
        normed = self._norm(x, f"{at}.input_layernorm.weight")
        query = self._heads(normed, at, "q", d.heads)
        key = self._heads(normed, at, "k", d.kv_heads)
        value = self._heads(normed, at, "v", d.kv_heads)
        if not halves:
            halves = [self._half(table) for table in angles]
        query, key = (self._rotated(each, halves) for each in (query, key))
        found = self.node(
            contract.NAME,
            [query, key, value, *cache],
            (1, d.heads, "T", d.head_dim),
            {"scale": float(d.head_dim**-0.5), "window": d.window, "softcap": 0.0},
            domain=contract.DOMAIN,
        )
        width = d.heads * d.head_dim
        found = self.node("Transpose", [found], (1, "T", d.heads, d.head_dim), {"perm": _HEADS_FIRST})
        found = self.node(
            "Reshape", [found, self.whole("merged", 1, -1, width)], (1, "T", width), {"allowzero": 1}
        )
        x = self._sum(x, self._linear(found, f"{at}.self_attn.o_proj", d.hidden))
        normed = self._norm(x, f"{at}.post_attention_layernorm.weight")
        gate = self._linear(normed, f"{at}.mlp.gate_proj", d.inner)
        bent = self.node("Sigmoid", [gate], (1, "T", d.inner))
        bent = self.node("Mul", [gate, bent], (1, "T", d.inner))
        up = self._linear(normed, f"{at}.mlp.up_proj", d.inner)
        inner = self.node("Mul", [bent, up], (1, "T", d.inner))
        return self._sum(x, self._linear(inner, f"{at}.mlp.down_proj", d.hidden)), key, value, halves

    def _heads(self, x: ir.Value, at: str, part: str, heads: int) -> ir.Value:
        """A projection as heads, [1, heads, T, D]."""
        d = self._decoder
        x = self._linear(x, f"{at}.self_attn.{part}_proj", heads * d.head_dim)
        split = self.whole(f"split.{heads}", 1, -1, heads, d.head_dim)
        x = self.node("Reshape", [x, split], (1, "T", heads, d.head_dim), {"allowzero": 1})
        if d.normed_heads and part != "v":
            x = self._norm(x, f"{at}.self_attn.{part}_norm.weight")
        return self.node("Transpose", [x], (1, heads, "T", d.head_dim), {"perm": _HEADS_FIRST})

    def _half(self, table: ir.Value) -> ir.Value:
        half = self._decoder.head_dim // 2
        cuts = [
            self.whole("zero", 0),
            self.whole("half", half),
            self.whole("last", 2),
            self.whole("one", 1),
        ]
        return self.node("Slice", [table, *cuts], (1, "T", half))

    def _rotated(self, x: ir.Value, halves: Sequence[ir.Value]) -> ir.Value:
        return self.node(
            "RotaryEmbedding", [x, *halves], x.shape, {"interleaved": 0, "rotary_embedding_dim": 0}
        )

    def _sum(self, x: ir.Value, more: ir.Value) -> ir.Value:
        return self.node("Add", [x, more], x.shape)

    def _norm(self, x: ir.Value, weight: str) -> ir.Value:
        attributes = {"axis": -1, "epsilon": self._decoder.epsilon}
        return self.node("RMSNormalization", [x, self._parameter(weight)], x.shape, attributes)

    def _linear(self, x: ir.Value, name: str, width: int, front: Sequence[Any] = (1, "T")) -> ir.Value:
        shape = (*front, width)
        x = self.node("MatMul", [x, self._lift(f"{name}.weight", turned=True)], shape)
        if f"{name}.bias" in self._weights:
            x = self.node("Add", [x, self._lift(f"{name}.bias")], shape)
        return x

    def _lift(self, name: str, turned: bool = False) -> ir.Value:
        """A weight [K, N] or a bias of a projection."""
        stem, values = name.rpartition(".")[0], self._of(name)
        number, self._lifted = self._lifted, self._lifted + 1
        lifted = f"model.{stem}.lifted_tensor_{number}"
        return self.constant(f"{lifted}.T", values.T) if turned else self.constant(lifted, values)

    def _parameter(self, name: str) -> ir.Value:
        return self.constant(f"model.{name}", self._of(name))

    def _of(self, name: str) -> Floats:
        tied = name == "lm_head.weight" and self._decoder.tied
        return self._weights["model.embed_tokens.weight" if tied else name]
