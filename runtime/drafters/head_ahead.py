"""A head that drafts on from its own states while the target looks at what it drafted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import perf_counter as clock

import numpy as np

from paceline.runtime.beside import Aside, Meanwhile
from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.drafters.branches import FIXED, Branches
from paceline.runtime.drafters.draw import Acceptance
from paceline.runtime.drafters.head import HeadDrafter, Levels, along
from paceline.runtime.drafters.head_window import Way, Window
from paceline.runtime.drafters.hearing import Ear
from paceline.runtime.drafters.level_noise import LevelNoise
from paceline.runtime.drafters.pace import Pace
from paceline.runtime.drafters.reuse import Reuse
from paceline.runtime.model.head import Features, Head
from paceline.runtime.request import Request
from paceline.runtime.timeline import BESIDE, LOOP
from paceline.runtime.tree import TokenTree

_FORCE = 1e4
"""Added to the logit of a token that is to be chosen: more than logits differ by, and little enough to be taken off."""


class HeadAhead:
    """Proposes what a head drafts. Beside the target's pass the head reads what it has not read, and drafts behind what
    may come of the pass: along each way it is made to choose the tokens of the way, and goes on from its own states, as
    its deeper levels do. What the target then says is drafted already; where it is not, drafting begins anew.

    A draft that was made so is another one than that of a head which has read the target's states, and has what levels
    the graphs leave behind the way. So how often its tokens are accepted is learnt apart, and where what would be
    drafted anew promises more, for what it costs, drafting begins anew all the same.
    """

    def __init__(
        self,
        serial: HeadDrafter,
        head: Head,
        features: Features,
        vocab: int,
        beside: Aside,
        branches: Branches = "weight",
    ) -> None:
        self.name, self.needs = serial.name, serial.needs
        self._serial, self._head, self._features = serial, head, features
        self._beside, self._branches = beside, branches
        self._ear, self._reused, self._reuse = Ear(vocab), Acceptance(head.model.part.accepted), Reuse()
        self._pace, self._begun = Pace(), 0.0
        self._noise: LevelNoise | None = None
        self._text: list[int] = []
        self._drafted: dict[Way, Levels] = {}
        self._window: Window | None = None
        self._alone = self._broken = self._on = False

    def footprint(self, limit: DraftLimit) -> int:
        """What the head takes."""
        return self._serial.footprint(limit)

    def begin(self, request: Request) -> None:
        """Draft as this request's rule wants it."""
        self._alone, self._broken, self._on = request.draft_dependent, False, False
        self._forget()
        self._serial.begin(request)
        self._ear.begin(request)
        self._noise = self._serial.noise

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """A tree of up to `limit.depth` levels."""
        begun, tally = clock(), self._beside.tally
        if self._broken and not self._alone:
            self._alone = True
            self._head.noise.fill(0)  # it may have been made to choose a token
        if self._alone:
            self._on = False
            return self._serial.propose(tokens, limit)
        found, asked = self._goes_on(tokens, limit), self._window is not None
        self._on = found is not None
        if (grew := len(tokens) - len(self._text)) > 0 and self._text:
            self._reuse.grew(grew, begun - self._begun)
        self._begun = begun
        if found is None:
            tree = self._serial.propose(tokens, limit)
            self._reuse.drafted(clock() - begun)
            self._forget()
        else:
            tree = self._tree(tokens[-1], found, limit)
            self._drafted = {(): found}
        if self._on:
            tally.hits, tally.hit_seconds = tally.hits + 1, tally.hit_seconds + clock() - begun
        elif asked:
            tally.misses, tally.miss_seconds = tally.misses + 1, tally.miss_seconds + clock() - begun
        self._text, self._window = list(tokens), None
        if len(tree) > 1:
            self._beside.later(partial(self._go_on, self._text), self._head.model)
        return tree

    def _tree(self, root: int, found: Levels, limit: DraftLimit) -> TokenTree:
        most = min(limit.nodes, limit.depth)
        return self._serial.comb(root, found.part(0, most), self._reused, limit)

    def _goes_on(self, tokens: Sequence[int], limit: DraftLimit) -> Levels | None:
        """What was drafted behind this text; None where nothing was, or what would be drafted anew is worth more."""
        old, window = self._text, self._window
        if not self._drafted or list(tokens[: len(old)]) != old:
            return None
        way = tuple(tokens[len(old) :])
        found, most = self._drafted.get(way), max(min(limit.nodes, limit.depth), 0)
        if found is not None:
            levels = range(1, min(len(found.chosen), most) + 1)
            there = along(map(self._reused.usual, levels))
            found = found if self._reuse.pays(there, self._serial.expected(limit, most)) else None
        if window is not None:
            self._beside.tally.foreseen += window.names(way)
            if self._beside.timeline is not None:
                self._beside.timeline.mark(LOOP, "miss" if found is None else "hit")
        return found

    def _forget(self) -> None:
        self._text, self._drafted, self._window = [], {}, None

    def _go_on(self, text: Sequence[int], meanwhile: Meanwhile) -> None:
        """Draft behind what is worth most, until the target has spoken."""
        self._broken = True
        head, hears = self._head, self._branches == "exit"
        window = self._window = Window(meanwhile.tree, self._branches)
        assert self._noise is not None
        if head.read(text, self._features):
            self._noise.write(text, head.depths[-1])
            way: Way | None = window.first()
            while not meanwhile.over():
                if way is not None:
                    self._draft(way, window, text[-1])
                elif not hears:
                    break
                elif meanwhile.early is None:
                    meanwhile.wait()
                if hears and (early := meanwhile.early) is not None:
                    hears = False
                    window.hear(self._ear.choose(window.tree, early, text))
                way = self._next(window, meanwhile)
        self._broken = False

    def _next(self, window: Window, meanwhile: Meanwhile) -> Way | None:
        """What to draft behind next; None where that is not worth its time."""
        found = window.next(self._head.depths[-1])
        if found is None:
            return None
        way, worth = found
        return way if self._branches in FIXED or self._pace.rows([worth], meanwhile.left()) else None

    def _draft(self, way: Way, window: Window, root: int) -> None:
        """One call along a way: what follows it is a branch, and so is what follows the token that it chooses next."""
        begun, head, timeline = clock(), self._head, self._beside.timeline
        window.done.add(way)
        columns = np.searchsorted(head.ids, way)
        if len(way) >= head.depths[-1] or not np.array_equal(
            head.ids[np.minimum(columns, len(head.ids) - 1)], way
        ):
            return
        at = np.arange(len(way)), columns
        head.noise[at] += _FORCE
        tokens, scores = head.draft(head.depths[-1], root)
        scores[at] -= _FORCE
        head.noise[at] -= _FORCE
        levels = self._serial.levels(tokens, scores)
        for level in range(len(way) + 1):
            window.say(way[:level], levels.at(level))
        branch = (*way, levels.chosen[len(way)]) if window.holds(way) else way
        window.done.add(branch)
        if len(branch) < len(levels.chosen):
            self._drafted[branch] = levels.part(len(branch))
        self._beside.tally.passes += 1
        took = clock() - begun
        self._pace.learn(1, took)
        if timeline is not None:
            timeline.add(BESIDE, "pass", begun, begun + took, rows=len(tokens))

    def observe(self, outcome: Outcome) -> None:
        """What its scores came to."""
        self._ear.observe(outcome)
        if self._on and len(outcome.scored.logits):
            self._reused.learn(outcome, self.name)
        else:
            self._serial.observe(outcome)

    def reset(self) -> None:
        """Empty the cache."""
        self._forget()
        self._serial.reset()
