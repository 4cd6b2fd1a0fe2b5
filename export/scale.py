"""A small Llama rewritten into a big one that computes the same function: real answers at a real cost.

For measuring speed where no big model is at hand. Nothing in the result is idle padding that a kernel could
skip: every copy of a weight differs, and together they mean the weight of the small model.

- The residual stream holds several copies of the small one, each shuffled and with signs of its own; an RMS norm
  does not notice. What reads the stream has its weights split over the copies in random unequal parts.
- Heads and neurons are repeated in the same way, and what reads them is split over the repetitions.
- Added blocks have random weights and an output projection of zeros.
- Added tokens are random mixtures of the rows of tokens that never occur, pushed further away from the rest:
  their logits stay far below the greatest, and what is sampled is as before but for a small share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Ids = npt.NDArray[np.int64]

SPREAD = 0.35
"""Random part of a share, in shares: large enough that rounding errors of the copies are independent (they then
average out), small enough that it takes no range away from the weight."""
_PUSH = 1.0
"""How far added rows go beyond the unlikely ones, in distances of these from the mean row."""
_ROWS = 1 << 22
"""Elements that are split at a time."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a Llama, as its configuration names them."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool

    @property
    def parameters(self) -> int:
        """How many weights it has, norms left out."""
        wide = self.head_dim * (self.heads + self.kv_heads)
        block = self.hidden * (2 * wide + 3 * self.ffn)
        return self.layers * block + (1 if self.tied else 2) * self.vocab * self.hidden


def check_sizes(small: Sizes, big: Sizes) -> None:
    """Raise ValueError where `big` is not a multiple of `small` in the way that is needed."""
    for name in ("hidden", "kv_heads"):
        ours, theirs = getattr(small, name), getattr(big, name)
        if theirs % ours:
            raise ValueError(f"{name} {theirs} is not a multiple of {ours}: choose one that is")
    if big.heads * small.kv_heads % (small.heads * big.kv_heads):
        raise ValueError(f"{big.heads} heads do not fall into groups like those of {small.heads}")
    if small.head_dim != big.head_dim or not small.tied:
        raise ValueError("heads must be as wide as before, and the embeddings of the small model tied")
    for name in ("layers", "ffn", "vocab"):
        if getattr(big, name) < getattr(small, name):
            raise ValueError(f"{name} {getattr(big, name)} is below the {getattr(small, name)} of the model")


def widen(
    small: Sizes, weights: Mapping[str, Floats], big: Sizes, unlikely: Ids, seed: int = 0
) -> Iterator[tuple[str, Halves]]:
    """The tensors of the big model under their Hugging Face names, one at a time, [out, in] as there.

    unlikely: a few tokens that the small model never writes; added ones are made like them.
    Raises ValueError for sizes that do not fit.
    """
    check_sizes(small, big)
    return _Widening(small, weights, big, unlikely, seed).tensors()


def stream_of(small: int, big: int, seed: int = 0) -> tuple[Ids, Floats]:
    """Of which column of the small model each of the stream is that `widen` makes with this seed, and its sign."""
    return _stream_by(np.random.default_rng(seed), small, big)


def _stream_by(rng: np.random.Generator, small: int, big: int) -> tuple[Ids, Floats]:
    stream: Ids = np.concatenate([rng.permutation(small) for _ in range(big // small)])
    return stream, rng.choice(np.array([-1, 1], np.float32), big)


def places_of(small: int, big: int) -> list[int]:
    """Which layer of the big model each of the small one is."""
    return [layer * big // small for layer in range(small)]


def repeated_heads(small: Sizes, big: Sizes) -> tuple[Ids, Ids]:
    """Of which row of the small model each row of queries is, and each of keys and values."""
    group, was = big.heads // big.kv_heads, small.heads // small.kv_heads
    keys = np.arange(big.kv_heads) % small.kv_heads
    queries = np.repeat(keys, group) * was + np.tile(np.arange(group) % was, big.kv_heads)
    lanes = np.arange(small.head_dim)
    return (queries[:, None] * small.head_dim + lanes).reshape(-1), (
        keys[:, None] * small.head_dim + lanes
    ).reshape(-1)


class _Widening:
    """Where every row and column of the big model comes from."""

    def __init__(
        self, small: Sizes, weights: Mapping[str, Floats], big: Sizes, unlikely: Ids, seed: int
    ) -> None:
        self._small, self._weights, self._big, self._unlikely = small, weights, big, unlikely
        self._rng = np.random.default_rng(seed)
        self._splitter = Splitter(self._rng)
        self._copies = big.hidden // small.hidden
        self._stream, self._sign = _stream_by(self._rng, small.hidden, big.hidden)
        self._queries, self._keys = repeated_heads(small, big)
        self._neurons: Ids = self._rng.permutation(np.arange(big.ffn) % small.ffn)
        self._origin = {new: old for old, new in enumerate(places_of(small.layers, big.layers))}

    def tensors(self) -> Iterator[tuple[str, Halves]]:
        """Embeddings, blocks, the last norm and, unless tied, the head."""
        tied, table = self._big.tied, self._with_added_rows()
        yield "model.embed_tokens.weight", (table[:, self._stream] * self._sign).astype(np.float16)
        for layer in range(self._big.layers):
            origin = self._origin.get(layer)
            yield from self._added(layer) if origin is None else self._block(layer, origin)
        # The tied head adds up the copies of the stream, where a split one takes a share of each.
        last = self._weights["model.norm.weight"][self._stream] / (self._copies if tied else 1)
        yield "model.norm.weight", last.astype(np.float16)
        if not tied:
            yield "lm_head.weight", self._reading(table)

    def _block(self, layer: int, origin: int) -> Iterator[tuple[str, Halves]]:
        old, new = f"model.layers.{origin}.", f"model.layers.{layer}."
        rows = {"q": self._queries, "k": self._keys, "v": self._keys}
        for name, kept in rows.items():
            key = f"self_attn.{name}_proj.weight"
            yield new + key, self._reading(self._weights[old + key][kept])
        for name in ("gate", "up"):
            key = f"mlp.{name}_proj.weight"
            yield new + key, self._reading(self._weights[old + key][self._neurons])
        for key, columns in (("self_attn.o_proj", self._queries), ("mlp.down_proj", self._neurons)):
            matrix = self._weights[f"{old}{key}.weight"][self._stream] * self._sign[:, None]
            yield f"{new}{key}.weight", self._splitter.split(matrix, columns)
        for key in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            yield new + key, self._weights[old + key][self._stream].astype(np.float16)

    def _added(self, layer: int) -> Iterator[tuple[str, Halves]]:
        """A block whose result is multiplied by zeros, of the same shapes and with weights as large."""
        for name, tensor in self._block(layer, int(self._rng.integers(self._small.layers))):
            if "layernorm" in name:
                yield name, tensor
            elif "o_proj" in name or "down_proj" in name:
                yield name, np.zeros_like(tensor)
            else:
                noise = self._rng.standard_normal(tensor.shape, np.float32)
                yield name, (noise * tensor.std(dtype=np.float32)).astype(np.float16)

    def _with_added_rows(self) -> Floats:
        """float32[vocab, hidden of the small model]."""
        table = self._weights["model.embed_tokens.weight"]
        added = self._big.vocab - len(table)
        pool = table[self._unlikely]
        share = self._rng.dirichlet(np.ones(len(pool)), added).astype(np.float32)
        rows = share @ pool + _PUSH * (pool.mean(axis=0) - table.mean(axis=0))
        return np.concatenate([table, rows])

    def _reading(self, matrix: Floats) -> Halves:
        """A matrix [out, hidden] that is to read the wide stream."""
        return self._splitter.split(matrix, self._stream, self._sign)


class Splitter:
    """Splits matrices over columns that stand several times."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def split(self, matrix: Floats, columns: Ids, sign: Floats | None = None) -> Halves:
        """Give column `columns[i]` of the matrix to column i, in parts that add up to it where it is repeated.

        What rounding to 16 bits takes from the sum is put back into the smallest part.
        """
        if sign is None:
            sign = np.ones(len(columns), np.float32)
        place, count = _places(columns)
        out = np.empty((len(matrix), len(columns)), np.float16)
        step = max(1, _ROWS // len(columns))
        for at in range(0, len(matrix), step):
            parts = self._parts(matrix[at : at + step], count)
            out[at : at + step] = parts[place, :, columns].T * sign.astype(np.float16)
        return out

    def _parts(self, matrix: Floats, count: Ids) -> Halves:
        """Random parts [most, out, in] of a matrix [out, in]; column i has count[i] of them, the rest are 0."""
        present = (np.arange(count.max())[:, None] < count)[:, None, :]
        size = np.sqrt(np.mean(matrix**2, axis=1, keepdims=True))
        noise = self._rng.standard_normal((len(present), *matrix.shape), np.float32) * (SPREAD * size)
        noise *= present
        noise -= noise.sum(axis=0) / count
        parts: Halves = np.where(present, (matrix + noise) / count, 0).astype(np.float16)
        magnitude = np.where(present, np.abs(parts), np.float16(np.inf))
        for _ in range(2):
            lost = matrix - parts.sum(axis=0, dtype=np.float32)
            least = magnitude.argmin(axis=0)[None]
            mended = np.take_along_axis(parts, least, axis=0) + lost
            np.put_along_axis(parts, least, mended.astype(np.float16), axis=0)
            np.put_along_axis(magnitude, least, np.abs(mended).astype(np.float16), axis=0)
        return parts


def _places(columns: Ids) -> tuple[Ids, Ids]:
    """Which repetition of its source each column is, and how often every source occurs."""
    count = np.bincount(columns)
    order = np.argsort(columns, kind="stable")
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    place = np.empty_like(columns)
    place[order] = np.arange(len(columns)) - np.repeat(first, count)
    return place, count
