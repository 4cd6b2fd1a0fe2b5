"""What the parts of a round exchange, and the three roles that exchange it: drafter, target, rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from paceline.memory.room import Room
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree

Array = npt.NDArray[Any]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DraftLimit:
    """How much may be drafted: nodes besides the root, and depth below it.

    Prices are in expected tokens, seconds over the seconds that a token takes: step_price of one more pass of
    a draft model, node_price of one more node to verify. node_prices, if given, are those of the first, second,
    ... node, never falling; node_price is that of any node after them. 0 means nothing is known of prices.
    """

    nodes: int
    depth: int
    step_price: float = 0.0
    node_price: float = 0.0
    node_prices: tuple[float, ...] = ()

    @property
    def priced(self) -> bool:
        """Whether anything is known of prices."""
        return self.node_price > 0 or bool(self.node_prices)

    def within(self, room: int, ceiling: Room | None) -> DraftLimit:
        """The limit below the ceiling, for at most `room` levels."""
        nodes, depth = self.nodes, min(self.depth, max(room, 0))
        if ceiling is not None:
            nodes, depth = min(nodes, ceiling.nodes), min(depth, ceiling.depth)
        nodes = nodes if depth > 0 else 0
        if nodes == self.nodes and depth == self.depth:
            return self
        return replace(self, nodes=nodes, depth=depth)

    def price(self, node: int) -> float:
        """What the node-th node costs, the first one is 1."""
        return self.node_prices[node - 1] if node <= len(self.node_prices) else self.node_price


class Scored(NamedTuple):
    """One pass of a model. logits: float32[R, V], row i for tree node i (R is 0 for a prompt chunk).

    The arrays are views of buffers that the next pass overwrites. extras: hidden taps by name, [T, H].
    """

    logits: Logits
    extras: Mapping[str, Array] = MappingProxyType({})


class Early(NamedTuple):
    """What a target's first layers say of the tokens behind each of T nodes, the k likeliest first.

    ids: int64[T, k], -1 where there are fewer. chances: float32[T, k], their logarithms. rest: float32[T] where
    these are the chances of what the rule will choose: that of any other token, at most. None where they are those of a
    law that the rule has yet to choose from.
    """

    ids: npt.NDArray[np.int64]
    chances: npt.NDArray[np.float32]
    rest: npt.NDArray[np.float32] | None = None

    def told(self) -> Iterator[tuple[list[tuple[int, float]], float]]:
        """By node the tokens that were chosen and their chances, and the chance of any other, at most."""
        if self.rest is None:
            raise ValueError("nobody has chosen from what was said early")
        chances = np.exp(self.chances).tolist()
        for ids, odds, rest in zip(self.ids.tolist(), chances, self.rest.tolist(), strict=True):
            yield [(token, chance) for token, chance in zip(ids, odds, strict=True) if token >= 0], rest


class Verdict(NamedTuple):
    """path: accepted nodes, root first, never empty. next_token: chosen after the path, not in the cache yet.

    tried: tree levels that were judged (a level is judged when the node above it had children), so
    `len(path) - 1 <= tried` and the acceptance rate is accepted over tried.
    """

    path: tuple[int, ...]
    next_token: int
    tried: int


class Outcome(NamedTuple):
    """What a drafter learns from: the tree that was scored, its scores, and what became of it."""

    tree: TokenTree
    scored: Scored
    verdict: Verdict

    @property
    def tokens(self) -> list[int]:
        """What the text grew by: the accepted tokens and the target's own."""
        ids = self.tree.tokens.tolist()
        return [*map(ids.__getitem__, self.verdict.path[1:]), self.verdict.next_token]


class Round(NamedTuple):
    """A round as it went. Wall seconds of the thread that runs the loop: they add up, whatever runs beside it.

    draft: proposing and learning. verify: the target's pass, and keeping its rows. judge: the rule. wait: standing
    still until work that goes on elsewhere is done; no other part counts it. times: of `time.perf_counter`, once
    waiting is over, and when drafts are proposed, scored, judged, kept and learnt from.
    """

    outcome: Outcome
    draft: float
    verify: float
    judge: float
    wait: float = 0.0
    times: tuple[float, float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Drafter(Protocol):
    """Proposes futures. Its state is a function of what it was shown; it re-syncs itself to `tokens`.

    Where `request.draft_dependent` holds the answer depends on what is drafted, and must be that of its seed: what was
    learnt in earlier answers, from a clock or from a file may not choose a node until the next `begin`. Random state
    starts from `request.seed` and `request.number`.
    """

    @property
    def name(self) -> str:
        """The word on the command line."""

    @property
    def needs(self) -> frozenset[str]:
        """Extras of the target it reads."""

    def footprint(self, limit: DraftLimit) -> int:
        """Bytes it holds at most under this limit, besides weights and a few fixed objects."""

    def begin(self, request: Request) -> None:
        """A new generation starts, or goes on with a text that slid; what was learnt stays (see above)."""

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """A tree rooted at `tokens[-1]` within the limit, no node worth less than its price.

        `tokens` is the whole committed history.
        """

    def observe(self, outcome: Outcome) -> None:
        """Follows every target pass, the prompt's chunks included (a chain, all accepted, no logits)."""

    def reset(self) -> None:
        """Forget everything that belongs to the sequence: it is gone, not slid."""


class Target(Protocol):
    """A model with a cache of committed tokens."""

    @property
    def length(self) -> int:
        """Committed cache rows."""

    def prefill(self, tokens: Sequence[int]) -> Scored:
        """Run and commit a chunk of the prompt; no logits."""

    def score(self, tree: TokenTree) -> Scored:
        """Logits for every node of the tree, whose root follows the committed rows."""

    def commit(self, path: tuple[int, ...]) -> None:
        """Keep the rows of these nodes of the tree scored last."""

    def rewind(self, length: int) -> None:
        """Forget all rows from `length` on."""


class AcceptanceRule(Protocol):
    """Decides which drafted tokens stand."""

    @property
    def lossless(self) -> bool:
        """Whether the output keeps the target's distribution."""

    def judge(
        self, tree: TokenTree, scored: Scored, history: Sequence[int], rng: np.random.Generator
    ) -> Verdict:
        """`history` is the committed tokens, the tree's root last."""


def common_prefix(old: list[int], new: Sequence[int]) -> int:
    """Length of the longest common prefix; whole slices are compared, so a text that only grew costs little."""
    low, high = 0, min(len(old), len(new))
    same = new[:high]
    # A text that only grew is the usual case, and a copy of a long one the dearest part of it.
    if (old if high == len(old) else old[:high]) == (same if isinstance(same, list) else list(same)):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if old[low:middle] == list(new[low:middle]):
            low = middle
        else:
            high = middle
    return low
