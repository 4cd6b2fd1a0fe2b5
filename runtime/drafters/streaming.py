"""Streams beside the target's pass: whoever looks at a continuation says several tokens behind it in the same pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from paceline.memory.model import FRONTIER
from paceline.runtime.contracts import DraftLimit, Logits
from paceline.runtime.drafters.branches import WORTH, Branches
from paceline.runtime.drafters.draw import Acceptance, Draw
from paceline.runtime.drafters.grid import ROOT, Grid
from paceline.runtime.drafters.head import HeadDrafter, Levels
from paceline.runtime.model.passes import Mask
from paceline.runtime.model.streams import Streams
from paceline.runtime.tree import TokenTree


class StreamGrid(Grid):
    """A grid whose nodes outside the window are looked at with streams behind them. depth: levels that these say."""

    def __init__(
        self, drafter: HeadDrafter, streams: Streams, tokens: Sequence[int], known: Acceptance, depth: int
    ) -> None:
        super().__init__(streams.model, tokens, known)
        self._drafter, self._streams, self.depth = drafter, streams, depth
        self.levels: dict[int, Levels] = {}
        """What is drafted behind a node."""

    def _run(self, nodes: Sequence[int], places: Sequence[int], mask: Mask, held: int) -> Logits:
        ends = [at for at, node in enumerate(nodes) if node not in self.window]
        tokens = [self.tokens[node] for node in nodes]
        rows, behind = self._streams.grow(tokens, places, mask, held, ends, self.depth)
        for at, said in zip(ends, behind, strict=True):
            self.levels[nodes[at]] = self._drafter.said(self.history(nodes[at]), said)
        return rows

    def _over(self, tokens: Sequence[int]) -> StreamGrid:
        return StreamGrid(self._drafter, self._streams, tokens, self._known, self.depth)

    def feedable(self, node: int) -> bool:
        """Whether streams have room behind it, too."""
        model = self._model
        return (
            super().feedable(node)
            and self.depths[node] + self._streams.behind <= model.context - model.length
        )

    def follow(self, tokens: Sequence[int]) -> Grid | None:
        """See `Grid`: None where nothing was drafted behind them."""
        levels = self.levels.get(([ROOT, *self.walk(tokens)])[-1])
        found = super().follow(tokens)
        if levels is None or not isinstance(found, StreamGrid):
            return None
        found.levels = {ROOT: levels}
        return found


class Streaming:
    """How streams read a text, and the tree that is made of what they say behind it: what `drafter` proposes."""

    def __init__(self, drafter: HeadDrafter, streams: Streams) -> None:
        self._drafter, self._streams, self._depth = drafter, streams, streams.depths[-1]
        self.worth: Mapping[Branches, Callable[[Grid, int], float]] = {
            name: partial(_next_to_window, worth) for name, worth in WORTH.items()
        }
        """See `Shape`."""

    def readable(self, tokens: Sequence[int]) -> Sequence[int]:
        """See `Reading`."""
        return self._streams.readable(tokens)

    def over(self, tokens: list[int], known: Acceptance) -> StreamGrid:
        """See `Reading`."""
        return StreamGrid(self._drafter, self._streams, tokens, known, self._depth)

    def read(self, grid: Grid, seen: Sequence[int], draw: Draw, limit: DraftLimit | None) -> None:
        """See `Reading`. Without a proposal no stream is needed."""
        assert isinstance(grid, StreamGrid)
        levels = 1 if limit is None else self._drafter.worth(limit, min(limit.nodes, limit.depth))
        rows = self._streams.rows(seen, levels)
        if limit is not None:
            grid.levels[ROOT] = self._drafter.said(grid.text, rows)
        grid.expand(ROOT, rows[0], draw)

    def together(self, grid: Grid) -> list[int]:
        """What the target looks at, which no pass of streams has read: the likeliest, as many as a pass takes."""
        found = list[int]()
        for node in sorted(grid.window - {ROOT}, key=lambda node: (-grid.weights[node], node)):
            parent = grid.parents[node]
            if node not in grid.fed and (parent in grid.fed or parent in found) and grid.feedable(node):
                found.append(node)
        return sorted(found[: FRONTIER * self._streams.depths[-1]])

    def grown(self, grid: Grid, known: Acceptance, draw: Draw, limit: DraftLimit, depth: int) -> TokenTree:
        """See `Shape`: no pass is run."""
        assert isinstance(grid, StreamGrid)
        grid.depth = self._depth = self._drafter.worth(limit, depth)
        return self._drafter.laid(grid.tokens[ROOT], grid.levels[ROOT].part(0, depth), limit)


def _next_to_window(worth: Callable[[Grid, int], float], grid: Grid, node: int) -> float:
    """Streams behind a branch say all that is proposed there: nothing behind it is looked at."""
    return worth(grid, node) if node in grid.window or grid.parents[node] in grid.window else 0.0
