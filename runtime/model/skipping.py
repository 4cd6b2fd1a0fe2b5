"""The target with blocks left out, which drafts over the target's own weights and cache (SWIFT, 2410.06916)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.runtime.contracts import Array, Logits
from paceline.runtime.manifest import Part
from paceline.runtime.model.contract import contract
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.passes import Mask, Pass, Passes


class Skipping:
    """Continues the text that a target holds by a chain, a row a pass, through a part of kind `skip`.

    Committed rows are the target's own: there is no prompt to read and no cache but its. The rows of a draft stand in
    the target's cache behind the committed ones, where nothing reads them: the target writes over them when it commits.
    Raises BundleError for a graph that is not what the manifest says.
    """

    odds = 0.0
    """It predicts nothing of acceptance."""

    def __init__(self, graph: Graph, part: Part, target: Model, reserved: bool = False) -> None:
        graph.check(*contract(part, target.cache.form))
        self.part, self._graph, self._target = part, graph, target
        self._passes = Passes(graph, part, target.fixed, widest=1, chunk=1, scratch=0, reserved=reserved)
        self._seen: Mask = np.ones((1, 1), np.bool_)
        self._drafted = 0

    @property
    def context(self) -> int:
        """Rows of the target's cache at most."""
        return self._target.context

    @property
    def bytes(self) -> int:
        """Bytes of the buffers that a pass writes to: all that it has of its own."""
        return self._passes.bytes

    @property
    def provider(self) -> str:
        """The execution provider that runs it."""
        return self._graph.provider

    def readable(self, tokens: Sequence[int], vocab: int) -> Sequence[int]:
        """The text as it is: the target has read it."""
        return tokens

    def read(self, tokens: Sequence[int]) -> Logits:
        """Logits after the last token of a text, float32[V], whose other tokens the target holds.

        Raises RuntimeError where it holds another text.
        """
        self.begin(tokens)
        return self.extend(tokens[-1:])

    def begin(self, tokens: Sequence[int]) -> None:
        """The last token of a text comes next; raises as `read` does."""
        held = self._target.tokens
        if len(held) != len(tokens) - 1 or (held and held[-1] != tokens[-2]):
            raise RuntimeError(f"the target holds {len(held)} tokens of a text of {len(tokens)}")
        self._drafted = 0

    def extend(self, tokens: Sequence[int]) -> Logits:
        """Logits after one more token, float32[V]; the next call overwrites them."""
        row: Logits = self._run(tokens, 1).logits[0]
        return row

    def state(self, token: int) -> Array:
        """What its last layer says of one more token, float32[1, hidden], where it gives that; the next call overwrites
        it.
        """
        [tap] = self.part.taps
        return self._run([token], 0).extras[tap]

    def _run(self, tokens: Sequence[int], want: int) -> Pass:
        at = self._target.length + self._drafted
        done = self._passes.run(tokens, at, self._seen, at, want)
        self._target.cache.write(at, done.new, slice(None))
        self._drafted += 1
        return done

    def rewind(self, length: int) -> None:
        """Nothing of the text is kept here."""
        self._drafted = 0

    def probe(self, rows: int, past: int) -> None:
        """A pass of one row for its time alone, after `past` cache rows whatever they hold."""
        self._passes.run([0], past, self._seen, past, 1)

    def close(self) -> None:
        """Give its buffers back; it cannot run again."""
        self._passes.close()
