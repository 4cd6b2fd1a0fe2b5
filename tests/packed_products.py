"""Random packed matrices, and the operators around them, for tests of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from one_node import Array, OneNode

from paceline.runtime.ops import packed_matmul as contract

EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Format:
    """How weights are stored."""

    bits: int
    block: int = 0
    kind: str = "codes"
    minimum: bool = False

    def __str__(self) -> str:
        return f"{self.bits}-{self.block or self.kind}{'-minimum' * self.minimum}"


FORMATS = (
    Format(4, 32), Format(4, 128), Format(4, 168), Format(4, 16),
    Format(4, 32, minimum=True), Format(4, 40, minimum=True), Format(5, 32), Format(5, 32, minimum=True),
    Format(5, 96, minimum=True), Format(6, 16), Format(6, 32), Format(6, 48, minimum=True),
    Format(8, 32), Format(8, 128), Format(8, 168), Format(8, 8),
    Format(16, kind="float16"), Format(16, kind="uint16"), Format(32, kind="float32"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Matrix:
    """W `[K, N]` as it stands in a graph."""

    K: int
    N: int
    form: Format
    weights: Array
    scales: Array | None

    def attributes(self) -> dict[str, int]:
        """What every operator says about it."""
        return {"K": self.K, "N": self.N, "bits": self.form.bits, "block_size": self.form.block}

    def constants(self) -> dict[str, Array]:
        """By the names of the inputs."""
        return {"weights": self.weights} | ({} if self.scales is None else {"scales": self.scales})

    def dense(self) -> contract.Floats:
        """In float32."""
        return contract.dequantised(self.weights, self.scales, **self.attributes())

    def product(self, x: contract.Floats, activation_bits: int = 8) -> Array:
        """The reference."""
        attributes: dict[str, Any] = self.attributes()
        return contract.product(x, self.weights, self.scales, activation_bits=activation_bits, **attributes)


def random_matrix(rng: np.random.Generator, K: int, N: int, form: Format) -> Matrix:
    """One whose columns have different sizes."""
    if form.bits > 8:
        values = rng.normal(size=(K, N)).astype(np.float32)
        if form.kind == "uint16":
            columns = (values.view(np.uint32) >> 16).astype(np.uint16)
        else:
            columns = values.astype(form.kind)
        return Matrix(K, N, form, contract.pack_columns(columns), None)
    codes = rng.integers(0, 1 << form.bits, (K, N)).astype(np.uint8)
    blocks = -(-K // form.block)
    scales = rng.uniform(0.01, 0.2, (blocks, N)).astype(np.float16)
    minima = rng.normal(size=scales.shape).astype(np.float16) if form.minimum else None
    packed = contract.pack_codes(codes, form.bits, form.block, minimum=form.minimum)
    return Matrix(K, N, form, packed, contract.pack_scales(scales, minima))


def random_rows(rng: np.random.Generator, rows: int, K: int) -> contract.Floats:
    """Activations with a few outliers, as models have them."""
    x: contract.Floats = rng.normal(size=(rows, K)).astype(np.float32)
    x[:, :: max(1, K // 3)] *= 20
    return x


@dataclass(frozen=True, slots=True)
class Problem:
    """An operator of PRODUCTS with everything it needs."""

    op: str
    matrix: Matrix
    x: contract.Floats
    extra: dict[str, Array]
    attributes: dict[str, Any]

    def node(self, *, fed: tuple[str, ...] = ("x", "residual"), threads: int = 1) -> OneNode:
        """A session whose inputs named in `fed` are fed, the others constants."""
        given = {"x": self.x, **self.matrix.constants(), **self.extra}
        order = tuple(name if name in given else "" for name in contract.PRODUCTS[self.op])
        return OneNode(
            self.op,
            order,
            {name: a for name, a in given.items() if name not in fed},
            {name: a for name, a in given.items() if name in fed},
            threads=threads,
            **self.matrix.attributes(),
            **self.attributes,
        )

    def rows(self, which: slice | Array) -> dict[str, Array]:
        """What to feed for some of the rows only."""
        return {
            name: a[which] for name, a in (("x", self.x), *self.extra.items()) if name in ("x", "residual")
        }

    def reference(self) -> tuple[Array, Array]:
        """The result, and how far off each number may be: float32 sums, and one code that rounds the other way."""
        exact = self.attributes.get("activation_bits", 8) == 32 or self.matrix.scales is None
        x = self.x
        if "norm" in self.extra:
            x = contract.rms_norm(x, self.extra["norm"], EPSILON)
        y = self.matrix.product(x, 32 if exact else 8) + self.extra.get("bias", 0)
        size = np.abs(x).max(axis=1, keepdims=True) * np.abs(self.matrix.dense()).max()
        slack = 5e-7 * self.matrix.K**0.5 * size
        if "norm" in self.extra and not exact:
            slack = slack + size / 127
        if "activation" in self.attributes:
            slack = slack * (1 + 2 * np.abs(y).max(axis=1, keepdims=True))
            y = contract.activated(y, self.attributes["activation"])
        return y + self.extra.get("residual", 0), np.broadcast_to(slack, y.shape)


def random_problem(
    op: str,
    form: Format,
    *,
    rows: int = 5,
    K: int = 168,
    N: int = 88,
    bias: bool = True,
    seed: int = 0,
    **attributes: Any,
) -> Problem:
    """K is no multiple of most blocks, and N/2 none of the tiles."""
    rng = np.random.default_rng(seed)
    glu = op.endswith("Glu")
    extra: dict[str, Array] = {}
    if op.startswith("Norm"):
        extra["norm"] = rng.uniform(0.5, 1.5, K).astype(np.float32)
        attributes["epsilon"] = EPSILON
    if op.endswith("Add"):
        extra["residual"] = rng.normal(size=(rows, N)).astype(np.float32)
    if bias:
        extra["bias"] = rng.normal(size=N).astype(np.float32)
    if glu:
        attributes.setdefault("activation", "silu")
    x = random_rows(rng, rows, K)
    if glu:
        x *= np.float32(0.02)  # gates where the activation bends
    return Problem(op, random_matrix(rng, K, N, form), x, extra, attributes)
