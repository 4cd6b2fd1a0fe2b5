"""A model of a bundle with its cache: prompt chunks, trees and draft levels are all passes of one graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.memory.cache import CacheFormat, RowCache
from paceline.runtime.contracts import Array, Logits, Scored, common_prefix
from paceline.runtime.manifest import Part, Rope
from paceline.runtime.model.adapters import adapters_of
from paceline.runtime.model.contract import contract
from paceline.runtime.model.first_half import FirstHalf
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.passes import Bound, Mask, Passes, Ran, joined, lower_triangle, rotary_inputs
from paceline.runtime.model.rope import frequencies, reach, step_of
from paceline.runtime.model.rows import rows_for
from paceline.runtime.model.static import StaticGraphs, StaticPasses
from paceline.runtime.model.taps import TapBuffer
from paceline.runtime.model.window import window
from paceline.runtime.tree import TokenTree

_RECENT = 32
"""Tokens that a round hardly ever passes."""


class Model:
    """Runs one part of a bundle; implements `Target`, and is what a draft model runs on, and what a head reads with.

    `widest` is the most new rows of any pass that asks for logits, `chunk` the width of a prompt chunk.
    `scratch` cache rows beyond the context limit hold a draft tree that is not committed. `reserved` makes every
    buffer resident at once. `rows` holds keys and values elsewhere than in this process. `first` runs before the graph,
    which is then the rest of the part.
    Raises BundleError, before anything is allocated, for a graph that is not what the manifest says.
    """

    def __init__(
        self,
        graph: Graph | StaticGraphs,
        part: Part,
        context: int,
        widest: int,
        chunk: int = 256,
        scratch: int = 0,
        reserved: bool = False,
        cache: CacheFormat = "fp32",
        rows: RowCache | None = None,
        first: FirstHalf | None = None,
    ) -> None:
        self.context, self._widest_context, self.chunk = context, context, chunk
        self._sizes = widest, scratch, reserved, cache
        self.tokens: list[int] = []
        self.step = 0
        """Which frequencies the rows are rotated by, where those depend on the length of the text."""
        self._last: Ran | None = None
        self._holder: int | None = None
        self.odds = 0.0
        """What `extend` predicted: added to the logarithm of the odds that a token drafted from its row is accepted."""
        self.taps: TapBuffer | None = None
        """Hidden states of the committed rows, where `keep_taps` was asked for them."""
        self.cache: RowCache
        self._run_on(graph, part, rows, first)

    def _run_on(
        self, graph: Graph | StaticGraphs, part: Part, rows: RowCache | None, first: FirstHalf | None
    ) -> None:
        widest, scratch, reserved, cache = self._sizes
        self.part, self._graph, self._rotary = part, graph, rotary_inputs(part)
        self.adapters = adapters_of(part)  # what is written into them holds from the next pass on
        if isinstance(graph, StaticGraphs):
            self.cache = made = graph.cache(self._widest_context + scratch, reserved)
            self.fixed: dict[str, Any] = {}
            self._passes: Passes | StaticPasses = StaticPasses(graph, made, widest, self.chunk, reserved)
        else:
            if first is None:
                graph.check(*contract(part, cache))
            else:
                first.check(graph, cache)
            self.cache = rows or rows_for(graph, part, self._widest_context + scratch, cache)
            self.fixed = {**self.adapters, **self.cache.inputs(), **self._rotary}
            self._passes = Passes(graph, part, self.fixed, widest, self.chunk, scratch, reserved, first)
        if reserved:
            self.cache.touch()
        if part.rope is not None:
            self._rotate(part.rope, 0)

    def leave(self, sole: bool = False) -> None:
        """Give all memory back but hidden states, and, of a sole user, the graph's. Until `go_on` nothing can run."""
        if sole:
            self._graph.close()
        self.forget()
        self._passes.close()
        self._last = None

    def go_on(self, graph: Graph | StaticGraphs, part: Part, first: FirstHalf | None = None) -> None:
        """Run from here on by another graph of the same model, which has read nothing. Raises as the constructor."""
        self._run_on(graph, part, None, first)

    @property
    def passes_run(self) -> int:
        """How often its graph ran."""
        return self._passes.count

    @contextmanager
    def lease(self) -> Iterator[Model]:
        """Keep it for this thread: passes of any other raise until the block ends, for the cache moves under them.

        Drafters find their way back by the longest common prefix. Raises RuntimeError where another thread has it.
        """
        self.lend(get_ident())
        try:
            yield self
        finally:
            self.take_back()

    def lend(self, thread: int) -> None:
        """The same for another thread, until `take_back`, whatever becomes of that thread. Raises as `lease` does."""
        if self._holder is not None:
            raise RuntimeError("this model is leased to another thread: give each worker one of its own")
        self._holder = thread

    def take_back(self) -> None:
        """What was lent may be run by all again; nobody may be running it."""
        self._holder = None

    @property
    def length(self) -> int:
        """Committed cache rows."""
        return len(self.tokens)

    @property
    def bytes(self) -> int:
        """Bytes of its cache and of the buffers that a pass writes to."""
        return self.cache.bytes + self.logit_bytes

    @property
    def logit_bytes(self) -> int:
        """Bytes of the buffers that a pass writes its logits and new rows to."""
        return self._passes.bytes

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
        self._rotary["inv_freq"][:], self._rotary["rope_scale"][:] = inverse, scale
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

    def prefill(self, tokens: Sequence[int], features: Array | None = None) -> Scored:
        """Run and commit tokens, `chunk` at a time, without logits but with their taps.

        Raises ValueError beyond the context.
        """
        if len(self.tokens) + len(tokens) > self.context:
            raise ValueError(
                f"{len(self.tokens) + len(tokens)} tokens do not fit into a context of {self.context}"
            )
        extras: list[dict[str, Array]] = []
        for at in range(0, len(tokens), self.chunk):
            part = tokens[at : at + self.chunk]
            n, past = len(part), len(self.tokens)
            fed = None if features is None else features[at : at + n]
            done = self._run(part, np.arange(past, past + n), lower_triangle(n), past, 0, fed)
            self._keep(past, done, slice(None))
            self.tokens.extend(int(t) for t in part)
            extras.append(
                done.extras if n == len(tokens) else {tap: rows.copy() for tap, rows in done.extras.items()}
            )
        whole = extras[0] if len(extras) == 1 else joined(extras)
        return Scored(self._passes.no_logits, whole)

    def score(self, tree: TokenTree) -> Scored:
        """Logits of every node; the arrays are overwritten by the next pass."""
        n, past = len(tree.tokens), len(self.tokens)
        self._last = self._run(tree.tokens, past + tree.depths(), tree.mask(), past, n)
        return Scored(self._last.logits, self._last.extras)

    def commit(self, path: tuple[int, ...]) -> None:
        """Keep the rows of these nodes of the tree that was scored last."""
        if self._last is None:
            raise ValueError("commit needs a scored tree: call score first, and commit it once")
        last, self._last = self._last, None
        first = path[-1] == len(path) - 1  # a chain: a slice is cheaper to copy
        self._keep(len(self.tokens), last, slice(len(path)) if first else path)
        ids = last.token_ids.tolist()
        self.tokens.extend(map(ids.__getitem__, path))

    def rewind(self, length: int) -> None:
        """Forget all rows from `length` on."""
        if not 0 <= length <= len(self.tokens):
            raise ValueError(f"cannot rewind a cache of {len(self.tokens)} rows to {length}")
        del self.tokens[length:]
        if self.taps is not None:
            self.taps.cut(length)

    def keep_taps(self, names: Iterable[str]) -> TapBuffer:
        """Keep these taps of every row that is committed from now on, besides those that are kept already.

        Where there are more of them nothing is held any more. Raises ValueError for one that the graph does not give.
        """
        wanted = frozenset(names) | (frozenset() if self.taps is None else self.taps.taps)
        if missing := sorted(wanted.difference(self.part.taps)):
            raise ValueError(
                f"the graph gives no {', '.join(missing)}: export it again with `paceline export --taps`"
            )
        if self.taps is None:
            self.taps = TapBuffer((), self.part.hidden, self._widest_context)
        self.taps.widen(wanted)
        return self.taps

    def drop_taps(self, wanted: Collection[str] = ()) -> None:
        """Keep no other taps than these from now on; `keep_taps` gives others back, in the same buffer."""
        if self.taps is not None:
            self.taps.narrow(wanted)

    def _check_features(self, rows: int, features: Array | None) -> None:
        shape = None if features is None else features.shape
        if shape != (None if self.part.features is None else (rows, self.part.features)):
            raise ValueError(
                f"a {self.part.kind} of {self.part.features or 0} feature columns was fed {shape}"
            )

    def _keep(self, at: int, done: Ran, rows: Sequence[int] | slice) -> None:
        self.cache.write(at, done.new, rows)
        if self.taps is not None:
            self.taps.write(at, done.extras, rows)

    def narrow(self, rows: int | None) -> None:
        """Use at most so many rows of the cache, None all, and give the memory of the others back."""
        context = min(rows or self._widest_context, self._widest_context)
        if context != self.context:
            self.context = context
            self.forget()

    def resize(self, widest: int) -> None:
        """Room for logits of so many rows from now on; what passes kept for wider ones goes back to the system."""
        self._passes.resize(widest)

    def forget(self) -> None:
        """Empty the cache and give its memory back."""
        self.rewind(0)
        self.cache.release()

    def close(self) -> None:
        """Give all memory but the graph's back; it cannot run again."""
        self.leave()
        self.taps = None

    def keep_common(self, tokens: Sequence[int]) -> int:
        """Rewind to what holds for a text that begins with `tokens` and has one more; returns its length."""
        if self.part.rope is not None:
            self.prepare(len(tokens) + 1)
        same = common_prefix(self.tokens, tokens)
        if same < len(self.tokens):
            self.rewind(same)
        recent = max(same - _RECENT, 0)
        self.tokens[recent:] = tokens[recent:same]  # the very same objects are compared several times faster
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
        return self.extend(self.unread(tokens))

    def unread(self, tokens: Sequence[int]) -> Sequence[int]:
        """Rewind to what holds for a text, or for all of it but its last token; returns the rest, a token at least."""
        held = self.keep_common(tokens)
        if held == len(tokens):
            held -= 1
            self.rewind(held)
        return tokens[held:]

    def extend(self, tokens: Sequence[int], features: Array | None = None) -> Logits:
        """Run and commit tokens and return the logits after the last one, float32[V].

        features: [T, columns], what a feature decoder is fed with beside each token.
        """
        if features is not None or self.part.features is not None:
            self._check_features(len(tokens), features)
        if len(tokens) > self.chunk:
            rest = (len(tokens) - 1) // self.chunk * self.chunk
            self.prefill(tokens[:rest], None if features is None else features[:rest])
            tokens, features = tokens[rest:], None if features is None else features[rest:]
        n, past = len(tokens), len(self.tokens)
        positions = np.arange(past, past + n) if n > 1 else past
        done = self._run(tokens, positions, lower_triangle(n), past, 1, features)
        self._keep(past, done, slice(None))
        self.tokens.extend(map(int, tokens))
        self.odds = float(done.odds[0, 0])
        row: Logits = done.logits[0]
        return row

    def ahead(self, tokens: Sequence[int], more: Sequence[int]) -> Logits:
        """Run and commit tokens, a chunk with `more` at most, and `more` behind them, which are not kept.

        Returns the logits of the last token and of all of `more`, float32[1 + len(more), V].
        """
        n, past = len(tokens) + len(more), len(self.tokens)
        done = self._run([*tokens, *more], np.arange(past, past + n), lower_triangle(n), past, 1 + len(more))
        self._keep(past, done, slice(len(tokens)))
        self.tokens.extend(map(int, tokens))
        return done.logits

    def grow(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        mask: Mask,
        held: int,
        features: Array | None = None,
        kept: int | None = None,
    ) -> Logits:
        """Score one level of a draft tree, float32[T, V], and leave its rows in the scratch of the cache.

        `held` earlier rows of the tree stand in the cache after the committed ones; mask is bool[T, held + T]. kept: so
        many of the rows are left, the first ones; None: all.
        """
        if features is not None or self.part.features is not None:
            self._check_features(len(tokens), features)
        past = len(self.tokens) + held
        done = self._run(tokens, np.asarray(positions, np.int64), mask, past, len(tokens), features)
        self.cache.write(past, done.new, slice(kept))
        return done.logits

    def keep(self, new: npt.NDArray[np.float32], tokens: Sequence[int]) -> None:
        """Commit tokens whose rows [2 * layers, kv_heads, T, head_dim] another graph of its weights made."""
        self.cache.write(len(self.tokens), new, slice(None))
        self.tokens.extend(tokens)

    def run(self, bound: Bound) -> None:
        """Run another graph over its cache."""
        if self._holder is not None:
            self._check_holder()
        bound.run()

    def adopt(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Commit scratch rows (offsets from the committed length, ascending) that hold these tokens."""
        at = len(self.tokens)
        self.cache.gather(at, [at + r for r in rows])
        self.tokens.extend(map(int, tokens))

    def probe(self, rows: int, past: int) -> None:
        """A pass for its time alone, after `past` cache rows whatever they hold; not between score and commit."""
        self._run(np.zeros(rows, np.int64), np.arange(past, past + rows), lower_triangle(rows), past, rows)

    def _run(
        self,
        tokens: Sequence[int] | npt.NDArray[np.int64],
        positions: Array | int,
        mask: Mask,
        past: int,
        want: int,
        features: Array | None = None,
    ) -> Ran:
        """One pass; `want` is 0 (no logits), 1 (the last row's) or T (every row's)."""
        if self._holder is not None:
            self._check_holder()
        return self._passes.run(tokens, positions, mask, past, want, features)

    def _check_holder(self) -> None:
        if self._holder != get_ident():
            raise RuntimeError("this model is leased to another thread, which runs it now")
