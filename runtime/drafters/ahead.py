"""A draft model that drafts on while the target looks at what it drafted (Mirror-SD, 2510.13161, and its family)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter as clock

from numpy.random import default_rng

from paceline.memory.model import FRONTIER
from paceline.runtime.beside import Aside, Meanwhile
from paceline.runtime.contracts import Drafter, DraftLimit, Early, Outcome
from paceline.runtime.drafters.branches import FIXED, Branches
from paceline.runtime.drafters.draw import Acceptance, Draw, make_draw
from paceline.runtime.drafters.grid import ROOT, Grid
from paceline.runtime.drafters.growing import Shape
from paceline.runtime.drafters.hearing import Ear
from paceline.runtime.drafters.pace import Pace
from paceline.runtime.drafters.reading import Nodes, Reading
from paceline.runtime.model.model import Model
from paceline.runtime.request import Request
from paceline.runtime.timeline import BESIDE, LOOP
from paceline.runtime.tree import TokenTree


class Ahead:
    """Proposes a chain or a tree, by its shape, of what a model says, by its reading. Beside the target's pass it goes
    on with whatever may come of it: each way through what was proposed, and each correction that is likely (see
    `branches`). What the target then says is drafted already, as far as the time went; where it is not, drafting begins
    anew.

    Where the target says early what may follow, that counts in place of what the draft model thinks.
    What it proposes depends on how fast the target was. Where the answer of a seed depends on what is drafted it
    leaves drafting to `serial`, and so it does for the rest of an answer once a pass beside the target's has failed.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        model: Model,
        vocab: int,
        serial: Drafter,
        shape: Shape,
        beside: Aside,
        branches: Branches = "weight",
        reading: Reading | None = None,
    ) -> None:
        self.name, self._serial, self._shape, self._beside = serial.name, serial, shape, beside
        self._reading = reading or Nodes(model, vocab)
        self._model, self._vocab = model, min(vocab, model.part.vocab)
        self._branches = branches
        self._draw: Draw | None = None
        self._known, self._ear = Acceptance(), Ear(self._vocab)
        self._grid: Grid | None = None
        self._seen: list[int] = []
        self._stamp = (-1, -1)
        self._pace = Pace()
        self._alone = self._broken = False

    def footprint(self, limit: DraftLimit) -> int:
        """What the serial drafter takes: both run one model."""
        return self._serial.footprint(limit)

    def begin(self, request: Request) -> None:
        """Pick as this request's rule wants it."""
        self._alone, self._broken = request.draft_dependent, False
        self._grid = None
        self._serial.begin(request)
        self._ear.begin(request)
        self._draw = make_draw(
            request, self._vocab, default_rng([request.seed, request.number, 3]), picks=True
        )

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """A chain or a tree of up to `limit.depth` levels."""
        begun, tally = clock(), self._beside.tally
        self._alone = self._alone or self._broken
        if self._alone or self._draw is None:
            return self._serial.propose(tokens, limit)
        before = tally.hits, tally.misses
        tree = self._proposed(tokens, limit, self._draw)
        if tally.hits > before[0]:
            tally.hit_seconds += clock() - begun
        elif tally.misses > before[1]:
            tally.miss_seconds += clock() - begun
        return tree

    def _proposed(self, tokens: Sequence[int], limit: DraftLimit, draw: Draw) -> TokenTree:
        reading, seen = self._reading, self._reading.readable(tokens)
        depth = min(limit.nodes, limit.depth, self._model.context - len(seen))
        if depth <= 0 or not seen:
            return TokenTree.root(tokens[-1])
        grid, self._seen = self._goes_on(seen), list(seen)
        if grid is None:
            grid = reading.over(list(tokens), self._known)
            if (
                self._branches == "window"
            ):  # the target needs no draft for what it says of the next token alone
                self._leave(grid, draw)
                return TokenTree.root(tokens[-1])
            reading.read(grid, seen, draw, limit)
        tree = self._shape.grown(grid, self._known, draw, limit, depth)
        if len(tree) > 1:
            self._leave(grid, draw)
        return tree

    def _leave(self, grid: Grid, draw: Draw) -> None:
        self._grid, self._stamp = grid, (self._model.passes_run, self._model.length)
        self._beside.later(partial(self._go_on, grid, draw), self._model)

    def _go_on(self, grid: Grid, draw: Draw, meanwhile: Meanwhile) -> None:
        """Feed what is worth most, until the target has spoken or there are no more rows."""
        self._broken = True
        if ROOT not in grid.fed:
            self._reading.read(grid, self._seen, draw, None)
        grid.cover(meanwhile.tree)
        together = self._reading.together(grid)
        worth, hears = partial(self._shape.worth[self._branches], grid), self._branches == "exit"
        timeline = self._beside.timeline
        while not meanwhile.over():
            if hears and (early := meanwhile.early) is not None:
                hears = False
                self._hear(grid, meanwhile.tree, early)
            begun, rows = clock(), together or self._next(grid, worth, meanwhile)
            if not grid.feed(rows, draw):
                if not hears:
                    break
                meanwhile.wait()
                continue
            took = clock() - begun
            if not together:
                self._pace.learn(len(rows), took)
            together = []
            if timeline is not None:
                timeline.add(BESIDE, "pass", begun, begun + took, rows=len(rows))
            self._stamp = (self._model.passes_run, self._model.length)
            self._beside.tally.passes += 1
        self._broken = False

    def _next(self, grid: Grid, worth: Callable[[int], float], meanwhile: Meanwhile) -> list[int]:
        """What to feed next; nothing where that is not worth its time."""
        rows = grid.waiting(FRONTIER, worth)
        if self._branches in FIXED:
            return rows
        rows.sort(key=lambda node: -grid.weights[node])
        return sorted(rows[: self._pace.rows([grid.weights[node] for node in rows], meanwhile.left())])

    def _hear(self, grid: Grid, tree: TokenTree, early: Early) -> None:
        """Weigh what follows each node of the window by what the target says of it."""
        if early.rest is None:
            early = self._ear.choose(tree, early, grid.text)
        for node, (said, rest) in zip(grid.cover(tree), early.told(), strict=True):
            grid.hear(node, said, rest)
        grid.weigh()

    def _goes_on(self, seen: Sequence[int]) -> Grid | None:
        """What was drafted of this text already; None where nothing was."""
        grid, old, model, tally = self._grid, self._seen, self._model, self._beside.tally
        self._grid = None
        if grid is None:
            return None
        found, new = None, list(seen[len(old) :])
        if self._stamp == (model.passes_run, model.length) and list(seen[: len(old)]) == old:
            tally.foreseen += len(grid.walk(new)) == len(new)
            found = grid.follow(new)
        tally.hits += found is not None
        tally.misses += found is None
        if self._beside.timeline is not None:
            self._beside.timeline.mark(LOOP, "miss" if found is None else "hit")
        return found

    def observe(self, outcome: Outcome) -> None:
        """What its scores came to."""
        self._serial.observe(outcome)
        self._ear.observe(outcome)
        if not self._alone:
            self._known.learn(outcome, self.name)

    def reset(self) -> None:
        """Empty the cache."""
        self._grid = None
        self._serial.reset()
