"""What is drafted beside the target's pass: by which branches, and by what the target says early."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Thread
from types import FrameType
from typing import Any

import numpy as np
import pytest
from draft_models import VOCAB, draft_model
from going_on import Inline, said
from rough_worker import KilledError

from paceline.runtime.contracts import DraftLimit, Early
from paceline.runtime.control.overlap import MARGIN, Round, gain, tokens_of
from paceline.runtime.drafters.ahead import Ahead
from paceline.runtime.drafters.branches import FAN, WORTH, Branches
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.drafters.draw import Acceptance, make_draw
from paceline.runtime.drafters.grid import ROOT, Grid
from paceline.runtime.drafters.growing import Chains
from paceline.runtime.request import Request, Sampling
from paceline.runtime.rules.noise import GumbelNoise
from paceline.runtime.tree import TokenTree

GREEDY = Request(Sampling(temperature=0), "rejection", 0, 0, 1)
TEXT = [1, 2, 3, 4]


def proposed(told: Inline, branches: Branches, request: Request = GREEDY) -> tuple[Ahead, TokenTree]:
    model = draft_model()
    ahead = Ahead(model, VOCAB, ChainModel(model, VOCAB), Chains("chain"), told, branches)
    ahead.begin(request)
    return ahead, ahead.propose(TEXT, DraftLimit(3, 3))


def unlikely(tree: TokenTree) -> list[int]:
    """For each node of a chain a token that the draft model thinks least likely behind it."""
    model = draft_model()
    rows = [model.read([*TEXT, *tree.tokens[1 : 1 + at].tolist()])[:VOCAB].copy() for at in range(len(tree))]
    return [int(row.argmin()) for row in rows]


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_correction_that_the_target_says_early_is_drafted_on(place: int) -> None:
    """One that the draft model thinks unlikely: it is there with what was said, and is not there without."""
    ready = {}
    for heard in (True, False):
        told = Inline(4)
        ahead, tree = proposed(told, "exit")
        odd = unlikely(tree)
        following = [*tree.tokens[1:].tolist(), -1]
        tokens = [odd[at] if at == place else (following[at] if at < 3 else odd[at]) for at in range(4)]
        told.early = said(tokens) if heard else None
        told.begin(tree)
        ahead.propose([*TEXT, *tree.tokens[1 : 1 + place].tolist(), odd[place]], DraftLimit(3, 3))
        ready[heard] = told.tally.hits
    assert ready == {True: 1, False: 0}


def test_with_noise_the_early_law_is_drawn_from_as_the_rule_draws() -> None:
    """Which of tokens that are equally likely by what was said comes first is decided by the noise of their place."""
    picked = set()
    for seed in range(12):
        request = Request(Sampling(temperature=1), "coupled", seed, 0, 1)
        noise = GumbelNoise(seed, 0)
        ids = np.arange(VOCAB)
        meant = int(noise.after(TEXT, ids).argmax())
        told = Inline(1)
        ahead, tree = proposed(told, "exit", request)
        flat = np.full((len(tree), VOCAB), -np.log(VOCAB), np.float32)
        told.early = Early(np.tile(ids, (len(tree), 1)), flat)
        told.begin(tree)
        assert ahead._ear._said[ROOT][0][0] == meant
        picked.add(meant)
    assert len(picked) > 2


def test_of_a_tree_every_node_is_in_the_window() -> None:
    """Others may draft in the same tree: what follows their nodes is looked at too."""
    told = Inline(6)
    ahead, tree = proposed(told, "exit")
    odd = unlikely(tree)[0]
    whole = TokenTree.picked(
        [*tree.tokens.tolist(), odd],
        [*tree.parents.tolist(), 0],
        [*tree.sources, "lookup"],
        [*tree.scores, 0.5],
    )
    follows = 2
    told.early = said([odd, *tree.tokens[2:].tolist(), 0, follows])
    told.begin(whole)
    ahead.propose([*TEXT, odd, follows], DraftLimit(3, 3))
    assert told.tally.hits == 1


def windowed() -> tuple[Grid, TokenTree]:
    """A grid whose likeliest way is looked at."""
    model = draft_model()
    draw = make_draw(GREEDY, VOCAB, np.random.default_rng(0))
    grid = Grid(model, TEXT, Acceptance())
    grid.expand(ROOT, model.read(TEXT), draw)
    node, chain = ROOT, [TEXT[-1]]
    for _ in range(2):
        node = grid.children[node][0]
        chain.append(grid.tokens[node])
        assert grid.feed([node], draw)
    tree = TokenTree.chain(chain)
    grid.cover(tree)
    return grid, tree


def test_a_fan_has_as_many_corrections_of_each_place_and_goes_level_by_level() -> None:
    grid, _ = windowed()
    worth = WORTH["fan"]
    by_parent: dict[int, list[int]] = {}
    for node in range(1, len(grid.tokens)):
        if node not in grid.window and worth(grid, node):
            by_parent.setdefault(grid.parents[node], []).append(node)
    assert set(by_parent) == grid.window
    assert {len(nodes) for nodes in by_parent.values()} == {FAN}
    draw = make_draw(GREEDY, VOCAB, np.random.default_rng(0))
    fed = list[int]()
    while waiting := grid.waiting(4, lambda node: worth(grid, node)):
        fed += waiting
        if not grid.feed(waiting, draw):
            break
    depths = [len([n for n in grid.path(node) if n not in grid.window]) for node in fed]
    assert depths == sorted(depths)
    assert depths[-1] > 1


def test_a_window_is_gone_on_along_one_way() -> None:
    grid, _ = windowed()
    worth = [node for node in range(1, len(grid.tokens)) if WORTH["window"](grid, node)]
    assert [grid.parents[node] for node in worth] == sorted(grid.window)


def test_behind_the_window_one_continuation_alone_is_worth_anything() -> None:
    grid, _ = windowed()
    draw = make_draw(GREEDY, VOCAB, np.random.default_rng(0))
    [first] = grid.waiting(1, lambda node: WORTH["weight"](grid, node))
    grid.feed([first], draw)
    worth = [WORTH["weight"](grid, child) for child in grid.children[first]]
    assert worth[0] > 0
    assert not any(worth[1:])


def test_after_a_miss_a_window_is_verified_without_a_draft() -> None:
    """What comes of it is drafted meanwhile."""
    told = Inline(5)
    ahead, tree = proposed(told, "window")
    assert len(tree) == 1
    told.begin(tree)
    following = int(draft_model().read(TEXT)[:VOCAB].argmax())
    again = ahead.propose([*TEXT, following], DraftLimit(3, 3))
    assert (told.tally.hits, len(again)) == (1, 4)
    alone = ChainModel(draft_model(), VOCAB)
    alone.begin(GREEDY)
    assert again.tokens.tolist() == alone.propose([*TEXT, following], DraftLimit(3, 3)).tokens.tolist()


def test_what_was_fed_of_a_way_is_kept_where_its_end_is_not() -> None:
    """Rows of accepted tokens are not read twice after a miss."""
    told = Inline(0)
    ahead, tree = proposed(told, "weight")
    told.begin(tree)
    model, ran = ahead._model, list[int]()
    real = model._passes.run
    model._passes.run = lambda tokens, *rest: (ran.append(len(tokens)), real(tokens, *rest))[1]  # type: ignore[method-assign,assignment]
    odd = unlikely(tree)[2]
    ahead.propose([*TEXT, *tree.tokens[1:3].tolist(), odd], DraftLimit(1, 1))
    assert told.tally.misses == 1
    assert ran[0] == 1


def test_a_round_beside_is_what_is_longest_and_what_was_not_foreseen() -> None:
    assert Round(10, 2, 6, 4, 0.5, hit=1, hidden=1).beside == pytest.approx(2 + 6 + 0.5)
    assert Round(10, 2, 3, 4, 0.5, hit=1, hidden=1).beside == pytest.approx(2 + 4 + 0.5)
    assert Round(10, 2, 6, 4, 0.5, hit=0.75, hidden=1).beside == pytest.approx(2 + 6 + 0.5 + 0.25 * 4)
    assert Round(10, 0, 10, 5, 0, hit=1, hidden=1).gain == pytest.approx(1.5)
    assert tokens_of(0.5, 2) == pytest.approx(1.75)


@pytest.mark.parametrize(
    ("alone", "step", "expected"),
    [(1.0, 0.2, True), (1.6, 0.2, False), (1.0, 1e-4, False), (1.05, 1e-4, False)],
    ids=["the core is to spare", "the target needs it", "drafting costs nothing", "nor is it free"],
)
def test_overlap_pays_where_it_is_faster(alone: float, step: float, expected: bool) -> None:
    """By seconds of a pass, with all threads 1 whatever its rows are."""
    assert (gain(lambda rows: 1.0, lambda rows: alone, step, 0.7, 0.6, 0.8) > MARGIN) == expected


class Killing:
    """Runs work on a thread, which ends at the so-many-th line of any function that it runs."""

    def __init__(self, line: int) -> None:
        self._line = line
        self.lines = 0

    def run(self, work: Callable[[], None]) -> None:
        thread = Thread(target=self._traced, args=(work,))
        thread.start()
        thread.join()

    def _traced(self, work: Callable[[], None]) -> None:
        sys.settrace(self._count)
        try:
            work()
        except KilledError:
            return
        finally:
            sys.settrace(None)

    def _count(self, frame: FrameType, event: str, value: Any) -> Any:
        if frame.f_code.co_name == "__del__":  # runs whenever it likes, and what it raises ends nothing
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._line:
                raise KilledError(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        return self._count


def test_work_may_end_at_any_line() -> None:
    """Of ours, of the library's and of what they call: the next proposal is drafted anew, over a model that is free."""
    alone = ChainModel(draft_model(), VOCAB)
    alone.begin(GREEDY)

    def killed_at(line: int, number: int) -> int:
        told, killing = Inline(2), Killing(line)
        ahead, tree = proposed(told, "weight")
        killing.run(lambda: told.begin(tree))
        text = [*TEXT, *tree.tokens[1:].tolist(), number % VOCAB]
        found = ahead.propose(text, DraftLimit(3, 3)).tokens.tolist()
        assert found == alone.propose(text, DraftLimit(3, 3)).tokens.tolist()
        return killing.lines

    whole = killed_at(0, 0)
    assert whole > 300
    for number, line in enumerate([*range(1, whole - 30, 9), *range(whole - 30, whole + 1)]):
        assert killed_at(line, number) == line
