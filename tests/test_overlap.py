"""Drafting beside the target's pass."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from threading import current_thread, get_ident, main_thread

import numpy as np
import pytest
from command_line import call
from draft_models import VOCAB, draft_model
from going_on import Inline
from law_rounds import same
from rough_worker import KilledError, endure

from paceline import Session, load
from paceline.embedded import embedded_bundle
from paceline.memory.errors import ArgumentError
from paceline.memory.model import FRONTIER
from paceline.runtime import settings
from paceline.runtime.beside import Meanwhile, Worker
from paceline.runtime.contracts import DraftLimit, Outcome, Scored, Verdict
from paceline.runtime.drafters.ahead import Ahead
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.drafters.draw import Acceptance, Draw, make_draw
from paceline.runtime.drafters.grid import ROOT, Grid
from paceline.runtime.drafters.growing import Chains, Trees
from paceline.runtime.drafters.tree import TreeModel
from paceline.runtime.request import Accept, Request, Sampling
from paceline.runtime.tree import TokenTree

TREE = TokenTree.root(0)
GREEDY = Request(Sampling(temperature=0), "rejection", 0, 0, 1)
PROMPTS = ["Once upon a time, a dog", "One day, the princess", "The robot was sad"]


def test_work_runs_on_a_thread_of_its_own_until_it_is_told_to_end() -> None:
    worker, seen = Worker(), list[int]()

    def work(meanwhile: Meanwhile) -> None:
        while not meanwhile.over():
            time.sleep(0.001)
        seen.append(get_ident())

    for _ in range(3):
        worker.later(work)
        worker.begin(TREE)
        assert worker.rest() > 0
    worker.close()
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert seen[0] != get_ident()


def test_work_that_did_not_begin_is_dropped() -> None:
    worker, ran = Worker(), list[int]()
    worker.later(lambda meanwhile: ran.append(1))
    assert worker.rest() == 0
    worker.begin(TREE)
    worker.close()
    assert not ran


def test_work_that_fails_is_over_and_the_thread_lives_on() -> None:
    worker, ran = Worker(), list[int]()

    def fails(meanwhile: Meanwhile) -> None:
        raise ValueError("lost")

    worker.later(fails)
    worker.begin(TREE)
    worker.rest()
    assert worker.tally.failure == "ValueError: lost"
    worker.later(lambda meanwhile: ran.append(1))
    worker.begin(TREE)
    worker.rest()
    assert ran == [1]
    worker.close()


def test_what_is_lent_is_the_threads_until_it_rests() -> None:
    """Whatever becomes of its work."""
    worker, model, ran = Worker(), draft_model(), list[int]()

    def work(meanwhile: Meanwhile) -> None:
        model.extend([1])
        ran.append(1)
        while not meanwhile.over():
            time.sleep(1e-3)
        raise KilledError("gone")

    for length in (1, 2):
        worker.later(work, model)
        worker.later(lambda meanwhile: None, model)
        worker.begin(TREE)
        while len(ran) < length:
            time.sleep(1e-3)
        with pytest.raises(RuntimeError, match="leased to another thread"):
            model.extend([2])
        worker.rest()
        assert model.length == length
    model.extend([2])
    worker.later(work, model)
    worker.rest()
    model.extend([3])
    worker.close()
    assert model.tokens == [1, 1, 2, 3]


def grown(rounds: int) -> tuple[Grid, list[int]]:
    """A grid that was grown best first."""
    model, text = draft_model(), [1, 2, 3, 4]
    draw = make_draw(GREEDY, VOCAB, np.random.default_rng(0))
    grid = Grid(model, text, Acceptance())
    grid.expand(ROOT, model.read(text), draw)
    for _ in range(rounds):
        assert grid.feed(grid.waiting(4, grid.weights.__getitem__), draw)
    return grid, text


def children(grid: Grid, node: int) -> list[tuple[int, float]]:
    return [(grid.tokens[child], grid.scores[child]) for child in grid.children[node]]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_what_a_grid_says_of_a_text_is_what_the_model_says_that_reads_it(steps: int) -> None:
    """Before and after the grid moved on, for every node that was fed; the rows that it kept serve further passes."""
    draw = make_draw(GREEDY, VOCAB, np.random.default_rng(0))
    grid, text = grown(4)
    went = list[int]()
    for node in range(1, len(grid.tokens)):
        if node in grid.fed and grid.depths[node] == steps:
            went = [grid.tokens[n] for n in grid.path(node)[1:]]
            break
    assert went
    moved = grid.follow(went)
    assert moved is not None
    assert moved.feed(moved.waiting(3, moved.weights.__getitem__), draw)
    looked = 0
    for node in moved.fed:
        way = [moved.tokens[n] for n in moved.path(node)[1:]]
        fresh = Grid(draft_model(), [*text, *went, *way], Acceptance())
        fresh.expand(ROOT, fresh._model.read([*text, *went, *way]), draw)
        assert children(moved, node) == children(fresh, ROOT)
        looked += 1
    assert looked >= 4


def test_a_grid_says_nothing_of_what_it_was_not_fed() -> None:
    grid, _ = grown(1)
    unfed = next(n for n in range(1, len(grid.tokens)) if n not in grid.fed)
    assert grid.follow([grid.tokens[n] for n in grid.path(unfed)[1:]]) is None


def test_the_likeliest_is_fed_first() -> None:
    grid, _ = grown(3)
    waiting = grid.waiting(2, grid.weights.__getitem__)
    assert waiting
    unfed = [n for n in range(1, len(grid.tokens)) if n not in grid.fed and grid.parents[n] in grid.fed]
    assert min(grid.weights[n] for n in waiting) >= max(
        [grid.weights[n] for n in unfed if n not in waiting], default=0
    )


def accepted(tree: TokenTree, count: int, token: int) -> Outcome:
    logits = np.zeros((len(tree), VOCAB), np.float32)
    return Outcome(tree, Scored(logits), Verdict(tuple(range(count + 1)), token, count + 1))


@pytest.mark.parametrize(("looks", "ready"), [(5, 1), (0, 0)], ids=["with time", "without"])
def test_what_the_target_says_is_drafted_already(looks: int, ready: int) -> None:
    """After a chain that was accepted whole, with the token that the model itself would say next."""
    model = draft_model()
    beside = Inline(looks)
    drafter = Ahead(model, VOCAB, ChainModel(model, VOCAB), Chains("chain"), beside)
    drafter.begin(GREEDY)
    text, limit = [1, 2, 3], DraftLimit(3, 3)
    first = drafter.propose(text, limit)
    beside.begin(first)
    following = int(np.argmax(draft_model().read([*text[:-1], *first.tokens.tolist()])[:VOCAB]))
    text += [*first.tokens[1:].tolist(), following]
    drafter.observe(accepted(first, len(first) - 1, following))
    again = drafter.propose(text, limit)
    assert (beside.tally.hits, beside.tally.misses) == (ready, 1 - ready)
    alone = ChainModel(draft_model(), VOCAB)
    alone.begin(GREEDY)
    assert again.tokens.tolist() == alone.propose(text, limit).tokens.tolist()


def tree_drafter() -> tuple[Ahead, Inline]:
    model, beside = draft_model(), Inline(6)
    drafter = Ahead(model, VOCAB, TreeModel(model, VOCAB), Trees("tree"), beside)
    drafter.begin(GREEDY)
    return drafter, beside


def test_a_tree_is_drafted_on_behind_its_nodes() -> None:
    """What comes of it is the tree that is drafted without, and takes fewer passes."""
    limit, hits = DraftLimit(6, 3), list[int]()
    for node in range(7):
        drafter, beside = tree_drafter()
        tree = drafter.propose([1, 2, 3], limit)
        assert len(tree) == 7
        assert not tree.is_chain()
        beside.begin(tree)
        way = tree.tokens[list(tree.path(node))[1:]].tolist()
        following = int(np.argmax(draft_model().read([1, 2, 3, *way])[:VOCAB]))
        text = [1, 2, 3, *way, following]
        ran = drafter._model.passes_run
        again = drafter.propose(text, limit)
        ran = drafter._model.passes_run - ran
        alone, _ = tree_drafter()
        assert same(again, alone.propose(text, limit))
        assert beside.tally.hits == 0 or ran < alone._model.passes_run
        hits.append(beside.tally.hits)
    assert sum(hits) >= 5


PLAIN = Sampling(temperature=0)
WARM = Sampling(temperature=1)


def told(session: Session, sampling: Sampling = PLAIN, accept: Accept = "coupled") -> list[list[int]]:
    how = {"sampling": sampling, "accept": accept, "seed": 5, "max_tokens": 40}
    return [session.generate(prompt, **how).read().tokens for prompt in PROMPTS]  # type: ignore[arg-type]


def answers(
    mirror: str, drafter: str, sampling: Sampling = PLAIN, accept: Accept = "coupled"
) -> list[list[int]]:
    with load(drafter=drafter, threads=2, mirror=mirror) as session:  # type: ignore[arg-type]
        return told(session, sampling, accept)


@pytest.mark.parametrize("drafter", ["chain", "chain,lookup", "tree", "tree,lookup,recycle", "auto"])
@pytest.mark.parametrize("sampling", [PLAIN, WARM], ids=["greedy", "coupled"])
def test_answers_are_plain_decodings(drafter: str, sampling: Sampling) -> None:
    assert answers("on", drafter, sampling) == answers("off", "none", sampling)


def test_a_seed_gives_one_answer_where_it_depends_on_what_is_drafted() -> None:
    assert answers("on", "chain", WARM, "rejection") == answers("off", "chain", WARM, "rejection")


@pytest.mark.parametrize("drafter", ["chain", "tree"])
@pytest.mark.parametrize("sampling", [PLAIN, WARM], ids=["greedy", "coupled"])
def test_no_delay_and_no_failure_changes_an_answer(sampling: Sampling, drafter: str) -> None:
    done = endure(embedded_bundle(), PROMPTS, sampling, 150, 0.05, drafter=drafter)
    assert done.hits > 20
    assert done.killed


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["chain", "tree"])
@pytest.mark.parametrize("sampling", [PLAIN, WARM], ids=["greedy", "coupled"])
def test_ten_thousand_rounds_of_delays_and_failures(sampling: Sampling, drafter: str) -> None:
    done = endure(embedded_bundle(), PROMPTS, sampling, 10_000, 0.02, drafter=drafter)
    assert done.hits > 2000
    assert done.killed > 50


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_replaced() -> None:
    worker, ran = Worker(), list[int]()
    worker.later(lambda meanwhile: ran.append(1))
    worker.begin(TREE)
    worker.rest()
    assert worker._thread is not None
    dead = worker._thread
    assert dead.ident is not None
    # It waits for work, outside of what catches errors.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(dead.ident), ctypes.py_object(KilledError))
    worker.later(lambda meanwhile: ran.append(2))
    worker.begin(TREE)
    assert worker.rest() > 0
    assert worker.tally.failure == "its thread has ended"
    assert not dead.is_alive()
    worker.later(lambda meanwhile: ran.append(3))
    worker.begin(TREE)
    worker.rest()
    worker.close()
    assert ran == [1, 3]


def test_a_draft_model_that_fails_beside_the_target_costs_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answers("off", "none")
    failed, real = list[int](), Grid.feed

    def sometimes(self: Grid, nodes: Sequence[int], draw: Draw) -> bool:
        if current_thread() is not main_thread() and not failed:
            failed.append(1)
            raise RuntimeError("the device is gone")
        return real(self, nodes, draw)

    monkeypatch.setattr(Grid, "feed", sometimes)
    with load(drafter="chain", threads=2, mirror="on") as session:
        assert told(session) == expected
    assert failed
    failed.clear()
    choices = ["--mirror", "on", "--threads", "2", "--drafter", "chain", "--stats", "full"]
    said = call("run", *choices, PROMPTS[0]).err
    assert said.count("drafting beside the model failed (RuntimeError: the device is gone)") == 1
    assert "\nbeside the model: " in said


def test_statistics_tell_what_was_ready() -> None:
    with load(drafter="chain", threads=2, mirror="on") as session:
        answer = session.generate(PROMPTS[0], max_tokens=60).read()
    tally = answer.stats.beside
    assert tally is not None
    assert tally.hits
    assert tally.passes
    assert 0 < tally.hits + tally.misses < answer.stats.rounds
    assert answer.stats.as_dict()["beside"]["hits"] == tally.hits
    with load(drafter="chain", threads=2) as session:
        assert session.generate(PROMPTS[0], max_tokens=5).read().stats.beside is None


@pytest.mark.parametrize(
    ("choices", "words"),
    [({"threads": 1}, "a thread of its own"), ({"mirror": "up"}, "mirror is on, off or auto")],
)
def test_what_cannot_be_mirrored_is_told_why(choices: dict[str, object], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        load(**({"mirror": "on", "threads": 2} | choices))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mirror", "used"), [("off", {"target": 2, "small": 2}), ("on", {"target": 1, "small": 1})]
)
def test_a_large_draft_model_has_one_thread_beside_the_target(
    mirror: str, used: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two it waits for cores that the target holds."""
    monkeypatch.setattr(settings, "_SMALL", 1)
    with load(drafter="chain", threads=2, mirror=mirror) as session:  # type: ignore[arg-type]
        told(session)
        models = {"target": session._workshop._target, **session._workshop._models}
        found = {
            n: m._graph.session.get_session_options().intra_op_num_threads for n, m in models.items() if m
        }
    assert found == used


def test_passes_beside_the_target_have_rows_of_their_own() -> None:
    """Those of eight passes, and plans count them."""
    rows, planned = list[int](), list[int]()
    for mirror in ("off", "on"):
        with load(drafter="chain", threads=2, mirror=mirror, context=256, memory="300MB") as session:  # type: ignore[arg-type]
            told(session)
            rows.append(session._workshop._model("small").cache.capacity)
            assert session.plan is not None
            planned.append(session.plan.total)
    assert rows[1] - rows[0] == 8 * FRONTIER
    assert planned[1] > planned[0]
