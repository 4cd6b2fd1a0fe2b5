"""A model of a bundle with its cache: prompt chunks, trees and draft levels are all passes of one graph."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from paceline.memory.cache import CacheFormat, KeyValueCache
from paceline.runtime.contracts import Array, Logits, Scored
from paceline.runtime.manifest import Part, Rope
from paceline.runtime.model.graph import Bound, Graph, Shape
from paceline.runtime.model.rope import frequencies, reach, step_of
from paceline.runtime.model.window import window
from paceline.runtime.prefix import common_prefix
from paceline.runtime.tree import TokenTree

_MOST_BINDINGS = 48
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Pass:
    """The arrays of one shape (T new rows, W mask columns, R rows of logits), bound to the graph."""

    bound: Bound
    token_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    tree_mask: Mask
    past_len: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    logits: Logits
    new: npt.NDArray[np.float32]
    extras: dict[str, Array]


class Model:
    """Runs one part of a bundle; implements `Target`, and is what a draft model runs on.

    `widest` is the most new rows of any pass that asks for logits, `chunk` the width of a prompt chunk.
    `scratch` cache rows beyond the context limit hold a draft tree that is not committed. `reserved` makes every
    buffer resident at once.
    Raises BundleError, before anything is allocated, for a graph that is not what the manifest says.
    """

    def __init__(
        self,
        graph: Graph,
        part: Part,
        context: int,
        widest: int,
        chunk: int = 256,
        scratch: int = 0,
        reserved: bool = False,
        cache: CacheFormat = "fp32",
    ) -> None:
        graph.check(*_contract(part, cache))
        self.part, self.context, self._widest_context = part, context, context
        self._graph, self.chunk = graph, chunk
        self.cache = KeyValueCache(part.layers, part.kv_heads, context + scratch, part.head_dim, cache)
        self.tokens: list[int] = []
        self.step = 0
        """Which frequencies the rows are rotated by, where those depend on the length of the text."""
        self.passes_run = 0
        self._passes: OrderedDict[tuple[int, int, int], _Pass] = OrderedDict()
        most = max(widest, chunk)
        self._new = np.empty(2 * part.layers * part.kv_heads * most * part.head_dim, np.float32)
        self._logits = np.empty(widest * part.vocab, np.float32)
        self._taps = {tap: np.zeros(most * part.hidden, np.float32) for tap in part.taps}
        self._reserved, self._shrink = reserved, False
        # Passes of all shapes share their inputs' memory, as they share their outputs'.
        self._ids = np.zeros((2, most), np.int64)
        self._mask = np.zeros(max(chunk * chunk, widest * (widest + scratch)), np.bool_)
        self._past = np.zeros(1, np.int64)
        if reserved:
            self.cache.touch()
            self._new.fill(0)
            self._logits.fill(0)
        self._fixed: dict[str, Array] = {}
        for i in range(part.layers):
            self._fixed[f"cache_k.{i}"] = self.cache.stack[i]
            self._fixed[f"cache_v.{i}"] = self.cache.stack[part.layers + i]
            if self.cache.scales is not None:
                self._fixed[f"k_scales.{i}"] = self.cache.scales[i]
                self._fixed[f"v_scales.{i}"] = self.cache.scales[part.layers + i]
        if part.rope is not None:
            self._fixed["inv_freq"] = np.empty(part.rope.dim // 2, np.float32)
            self._fixed["rope_scale"] = np.empty(1, np.float32)
            self._rotate(part.rope, 0)
        self._last: _Pass | None = None

    @property
    def length(self) -> int:
        """Committed cache rows."""
        return len(self.tokens)

    @property
    def logit_bytes(self) -> int:
        """Bytes of the buffers that a pass writes its logits and new rows to."""
        return self._logits.nbytes + self._new.nbytes

    @property
    def provider(self) -> str:
        """The execution provider that runs it."""
        return self._graph.provider

    def prepare(self, length: int) -> int:
        """Rotate as in a text of `length` tokens, and forget rows that were rotated otherwise.

        Returns the step of that length, 0 up to the original context.
        """
        if self.part.rope is not None and (step := step_of(self.part.rope, length)) != self.step:
            self.rewind(0)
            self._rotate(self.part.rope, step)
        return self.step

    def _rotate(self, rope: Rope, step: int) -> None:
        inverse, scale = frequencies(rope, reach(rope, step, self.part.context))
        self._fixed["inv_freq"][:], self._fixed["rope_scale"][:] = inverse, scale
        self.step = step

    def room(self, length: int) -> int:
        """Tokens that may follow a text of `length` before all of it has to be read again."""
        room = self.context - length
        rope = self.part.rope
        if rope is None:
            return room
        # The last token of a step is followed by one more, which it chose.
        end = reach(rope, step_of(rope, length), self.part.context)
        return min(room, end + 1 - length) if end < self.part.context else room

    def prefill(self, tokens: Sequence[int]) -> Scored:
        """Run and commit tokens, `chunk` at a time, without logits. Raises ValueError beyond the context."""
        if self.length + len(tokens) > self.context:
            raise ValueError(
                f"{self.length + len(tokens)} tokens do not fit into a context of {self.context}"
            )
        for at in range(0, len(tokens), self.chunk):
            part = tokens[at : at + self.chunk]
            n, past = len(part), self.length
            done = self._run(part, np.arange(past, past + n), _lower_triangle(n), past, 0)
            self.cache.write(past, done.new, slice(None))
            self.tokens.extend(int(t) for t in part)
        return Scored(self._logits[:0].reshape(0, self.part.vocab))

    def score(self, tree: TokenTree) -> Scored:
        """Logits of every node; the arrays are overwritten by the next pass."""
        n, past = len(tree), self.length
        self._last = self._run(tree.tokens, past + tree.depths(), tree.mask(), past, n)
        return Scored(self._last.logits, self._last.extras)

    def commit(self, path: tuple[int, ...]) -> None:
        """Keep the rows of these nodes of the tree that was scored last."""
        if self._last is None:
            raise ValueError("commit needs a scored tree: call score first, and commit it once")
        last, self._last = self._last, None
        self.cache.write(self.length, last.new, path)
        self.tokens.extend(last.token_ids[list(path)].tolist())

    def rewind(self, length: int) -> None:
        """Forget all rows from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind a cache of {self.length} rows to {length}")
        del self.tokens[length:]

    def narrow(self, rows: int | None) -> None:
        """Use at most so many rows of the cache, None all, and give the memory of the others back."""
        context = min(rows or self._widest_context, self._widest_context)
        if context != self.context:
            self.context = context
            self.forget()

    def resize(self, widest: int) -> None:
        """Room for logits of so many rows from now on; what passes kept for wider ones goes back to the system."""
        self._passes.clear()
        self._shrink = True
        if widest * self.part.vocab != len(self._logits):
            self._logits = self._logits[:0].copy()  # first the one goes, then the other comes
            self._logits = np.empty(widest * self.part.vocab, np.float32)
            if self._reserved:
                self._logits.fill(0)

    def forget(self) -> None:
        """Empty the cache and give its memory back."""
        self.rewind(0)
        self.cache.release()

    def close(self) -> None:
        """Give all memory but the graph's back; it cannot run again."""
        self.forget()
        self._passes.clear()
        self._last = None
        self._new, self._logits = self._new[:0].copy(), self._logits[:0].copy()
        self._mask, self._taps = self._mask[:0].copy(), {}

    def keep_common(self, tokens: Sequence[int]) -> int:
        """Rewind to what holds for a text that begins with `tokens` and has one more; returns its length."""
        self.prepare(len(tokens) + 1)
        same = common_prefix(self.tokens, tokens)
        if same < self.length:
            self.rewind(same)
        return same

    def readable(self, tokens: Sequence[int], vocab: int) -> Sequence[int]:
        """A text as this model can read it: a window where its cache is too short for all of it.

        vocab: ids that the text may hold. Those that this model does not know become its last one.
        """
        last = self.part.vocab - 1
        if last + 1 < vocab and max(tokens) > last:
            tokens = [min(token, last) for token in tokens]
        return tokens if len(tokens) < self.context else window(len(tokens) + 1, self.context).of(tokens)

    def read(self, tokens: Sequence[int]) -> Logits:
        """Bring the cache up to `tokens` and return the logits after the last one, float32[V]."""
        held = self.keep_common(tokens)
        if held == len(tokens):
            held -= 1
            self.rewind(held)
        return self.extend(tokens[held:])

    def extend(self, tokens: Sequence[int]) -> Logits:
        """Run and commit tokens and return the logits after the last one, float32[V]."""
        if len(tokens) > self.chunk:
            rest = (len(tokens) - 1) // self.chunk * self.chunk
            self.prefill(tokens[:rest])
            tokens = tokens[rest:]
        n, past = len(tokens), self.length
        positions = np.arange(past, past + n) if n > 1 else past
        done = self._run(tokens, positions, _lower_triangle(n), past, 1)
        self.cache.write(past, done.new, slice(None))
        self.tokens.extend(int(t) for t in tokens)
        row: Logits = done.logits[0]
        return row

    def grow(self, tokens: Sequence[int], positions: Sequence[int], mask: Mask, held: int) -> Logits:
        """Score one level of a draft tree, float32[T, V], and leave its rows in the scratch of the cache.

        `held` earlier rows of the tree stand in the cache after the committed ones; mask is bool[T, held + T].
        """
        past = self.length + held
        done = self._run(tokens, np.asarray(positions, np.int64), mask, past, len(tokens))
        self.cache.write(past, done.new, slice(None))
        return done.logits

    def adopt(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Commit scratch rows (offsets from the committed length, ascending) that hold these tokens."""
        at = self.length
        self.cache.gather(at, [at + r for r in rows])
        self.tokens.extend(int(t) for t in tokens)

    def probe(self, rows: int, past: int) -> None:
        """A pass for its time alone, after `past` cache rows whatever they hold; not between score and commit."""
        self._run(np.zeros(rows, np.int64), np.arange(past, past + rows), _lower_triangle(rows), past, rows)

    def _run(
        self,
        tokens: Sequence[int] | npt.NDArray[np.int64],
        positions: Array | int,
        mask: Mask,
        past: int,
        want: int,
    ) -> _Pass:
        """One pass; `want` is 0 (no logits), 1 (the last row's) or T (every row's)."""
        n = len(tokens)
        key = (n, mask.shape[1], want)
        found = self._passes.get(key)
        if found is None:
            found = self._make_pass(*key)
        else:
            self._passes.move_to_end(key)
        found.token_ids[:] = tokens
        found.positions[:] = positions
        found.tree_mask[:] = mask
        found.past_len[0] = past
        found.bound.run(self._shrink)
        self._shrink = False
        self.passes_run += 1
        return found

    def _make_pass(self, n: int, width: int, want: int) -> _Pass:
        part = self.part
        token_ids, positions = self._ids[0, :n], self._ids[1, :n]
        tree_mask, past_len = self._mask[: n * width].reshape(n, width), self._past
        rows = np.arange(n - want, n, dtype=np.int64)
        size = 2 * part.layers * part.kv_heads * n * part.head_dim
        new = self._new[:size].reshape(2 * part.layers, part.kv_heads, n, part.head_dim)
        logits = self._logits[: want * part.vocab].reshape(want, part.vocab)
        extras: dict[str, Array] = {
            tap: buffer[: n * part.hidden].reshape(n, part.hidden) for tap, buffer in self._taps.items()
        }
        outputs: dict[str, Array] = {"logits": logits, **extras}
        for i in range(part.layers):
            outputs[f"new_k.{i}"] = new[i]
            outputs[f"new_v.{i}"] = new[part.layers + i]
        inputs: dict[str, Array] = {
            "token_ids": token_ids,
            "positions": positions,
            "tree_mask": tree_mask,
            "past_len": past_len,
            "rows": rows,
            **self._fixed,
        }
        made = _Pass(
            self._graph.bind(inputs, outputs),
            token_ids,
            positions,
            tree_mask,
            past_len,
            rows,
            logits,
            new,
            extras,
        )
        self._passes[n, width, want] = made
        if len(self._passes) > _MOST_BINDINGS:
            self._passes.popitem(last=False)
        return made


def _contract(part: Part, cache: CacheFormat) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The inputs and outputs of a graph of these sizes, over a cache of this form."""
    inputs: dict[str, Shape] = {
        "token_ids": ("T",),
        "positions": ("T",),
        "tree_mask": ("T", "W"),
        "past_len": (1,),
        "rows": ("R",),
    }
    outputs: dict[str, Shape] = {"logits": ("R", part.vocab)}
    outputs |= dict.fromkeys(part.taps, ("T", part.hidden))
    for i in range(part.layers):
        for kind in ("k", "v"):
            inputs[f"cache_{kind}.{i}"] = (part.kv_heads, "S", part.head_dim)
            if cache == "int8":
                inputs[f"{kind}_scales.{i}"] = (part.kv_heads, "S")
            outputs[f"new_{kind}.{i}"] = (part.kv_heads, "T", part.head_dim)
    if part.rope is not None:
        inputs |= {"inv_freq": (part.rope.dim // 2,), "rope_scale": (1,)}
    return inputs, outputs


@lru_cache(1)
def _largest_triangle(n: int) -> Mask:
    mask = np.tri(n, dtype=np.bool_)
    mask.flags.writeable = False
    return mask


def _lower_triangle(n: int) -> Mask:
    """The mask of a chain, a view of the one that all share."""
    return _largest_triangle(max(256, n))[:n, :n]
