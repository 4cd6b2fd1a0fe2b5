"""A draft model that drafts on while the target looks at what it drafted (SSD, 2603.03251; PEARL, 2408.11850)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from numpy.random import default_rng

from paceline.memory.model import FRONTIER
from paceline.runtime.beside import Beside
from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.drafters.draw import Acceptance, Draw, make_draw
from paceline.runtime.drafters.grid import ROOT, Grid
from paceline.runtime.model.model import Model
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree


class Ahead:
    """Proposes a chain. Beside the target's pass it goes on with whatever may come of it: the chain accepted whole or
    in part, and each correction that is likely, those of most weight first. What the target then says is drafted
    already, as far as the time went.

    What it proposes depends on how fast the target was. Where the answer of a seed depends on what is drafted it
    leaves drafting to `serial`, and so it does for the rest of an answer once
    a pass beside the target's has failed.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, model: Model, vocab: int, serial: ChainModel, beside: Beside) -> None:
        self.name, self._serial, self._beside = serial.name, serial, beside
        self._model, self._all, self._vocab = model, vocab, min(vocab, model.part.vocab)
        self._draw: Draw | None = None
        self._known = Acceptance()
        self._grid: Grid | None = None
        self._seen: list[int] = []
        self._stamp = (-1, -1)
        self._alone = self._broken = False

    def footprint(self, limit: DraftLimit) -> int:
        """What the serial drafter takes: both run one model."""
        return self._serial.footprint(limit)

    def begin(self, request: Request) -> None:
        """Pick as this request's rule wants it."""
        self._alone, self._broken = request.draft_dependent, False
        self._grid = None
        self._serial.begin(request)
        self._draw = make_draw(
            request, self._vocab, default_rng([request.seed, request.number, 3]), picks=True
        )

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """A chain of up to `limit.depth` tokens."""
        model, draw = self._model, self._draw
        self._alone = self._alone or self._broken
        if self._alone or draw is None:
            return self._serial.propose(tokens, limit)
        seen = model.readable(tokens, self._all)
        depth = min(limit.nodes, limit.depth, model.context - len(seen))
        if depth <= 0:
            return TokenTree.root(tokens[-1])
        grid = self._goes_on(seen)
        if grid is None:
            grid = Grid(model, seen, self._known)
            grid.expand(ROOT, model.read(seen), draw)
        chain, scores = self._chain(grid, draw, limit, depth)
        self._grid, self._seen = grid, list(seen)
        self._stamp = (model.passes_run, model.length)
        if len(chain) > 1:
            self._beside.later(lambda told: self._go_on(grid, draw, told))
        return TokenTree.chain([tokens[-1], *chain[1:]], self.name, None, scores)

    def _chain(self, grid: Grid, draw: Draw, limit: DraftLimit, depth: int) -> tuple[list[int], list[float]]:
        """The likeliest way down, as far as it is worth its nodes, and the passes that it still takes."""
        node, chain, scores = ROOT, [grid.tokens[ROOT]], [1.0]
        while len(chain) <= depth and grid.children.get(node):
            best, level = grid.children[node][0], len(chain)
            if grid.weights[best] < limit.price(level):
                break
            node = best
            chain.append(grid.tokens[node])
            scores.append(grid.scores[node])
            if node in grid.children or level == depth:
                continue
            following = grid.weights[node] * self._known.usual(level + 1)
            if following < limit.step_price + limit.price(level + 1) or not grid.feed([node], draw):
                break
        return chain, scores

    def _go_on(self, grid: Grid, draw: Draw, told: Callable[[], bool]) -> None:
        """Feed what is likeliest to be needed, until the target has spoken or there are no more rows."""
        self._broken = True
        with self._model.lease():
            while not told() and grid.feed(grid.waiting(FRONTIER), draw):
                self._stamp = (self._model.passes_run, self._model.length)
                self._beside.tally.passes += 1
        self._broken = False

    def _goes_on(self, seen: Sequence[int]) -> Grid | None:
        """What was drafted of this text already; None where nothing was."""
        grid, old, model, tally = self._grid, self._seen, self._model, self._beside.tally
        found, self._grid = None, None
        if (
            grid is not None
            and self._stamp == (model.passes_run, model.length)
            and list(seen[: len(old)]) == old
        ):
            found = grid.follow(seen[len(old) :])
        if grid is not None:
            tally.hits += found is not None
            tally.misses += found is None
        return found

    def observe(self, outcome: Outcome) -> None:
        """What its scores came to."""
        self._serial.observe(outcome)
        if not self._alone:
            self._known.learn(outcome, self.name)

    def reset(self) -> None:
        """Empty the cache."""
        self._grid = None
        self._serial.reset()
