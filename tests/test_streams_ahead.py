"""Streams that draft on beside the target's pass: each continuation that is looked at says several tokens at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from draft_models import VOCAB
from going_on import Inline, said
from law_rounds import GREEDY, same
from law_subjects import stream_drafter
from rough_worker import endure
from test_branches import Killing

from paceline import load
from paceline.memory.budget import resident
from paceline.memory.model import FRONTIER
from paceline.runtime.contracts import DraftLimit
from paceline.runtime.drafters.ahead import Ahead
from paceline.runtime.drafters.branches import Branches
from paceline.runtime.drafters.names import goes_beside
from paceline.runtime.drafters.streaming import Streaming
from paceline.runtime.model.streams import Streams
from paceline.runtime.request import Sampling
from paceline.runtime.tree import TokenTree

TEXT, LIMIT = [3, 1, 4, 0], DraftLimit(8, 4)
PROMPTS = ["Once upon a time, a dog", "One day, the princess", "The robot was sad"]
SAMPLINGS = [Sampling(temperature=0), Sampling(temperature=1), Sampling()]


def drafting(looks: int, branches: Branches = "weight") -> tuple[Ahead, Inline]:
    serial, inline = stream_drafter(), Inline(looks)
    assert isinstance(serial.head, Streams)
    ways = Streaming(serial, serial.head)
    ahead = Ahead(serial.head.model, VOCAB, serial, ways, inline, branches, reading=ways)
    ahead.begin(GREEDY)
    return ahead, inline


def alone(text: list[int], limit: DraftLimit = LIMIT) -> TokenTree:
    """What is proposed of a text that is read for it."""
    serial = stream_drafter()
    serial.begin(GREEDY)
    return serial.propose(text, limit)


def next_of(text: list[int]) -> int:
    """What the draft model itself says next."""
    head = stream_drafter().head
    assert isinstance(head, Streams)
    return int(head.rows(text, 1)[0, :VOCAB].argmax())


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_streams_behind_nodes_say_what_streams_say_behind_their_text(levels: int) -> None:
    """Of several nodes in one pass, and of more behind these in the next; their own rows are not kept."""
    tested = stream_drafter().head
    assert isinstance(tested, Streams)
    tested.rows(TEXT, levels)
    ways = [[4], [5], [4, 2], [5, 1]]
    mask = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1]], np.bool_)
    found = list[np.ndarray]()
    said, behind = tested.grow([4, 5, 2], [4, 4, 5], mask, 0, [1, 2], levels)
    found += [said[0].copy(), *(rows.copy() for rows in behind)]
    _, [rows] = tested.grow([1], [5], np.array([[0, 1, 0, 1]], np.bool_), 3, [0], levels)
    found.append(rows)
    for way, rows in zip(ways, found, strict=True):
        head = stream_drafter().head
        assert isinstance(head, Streams)
        meant = head.rows([*TEXT, *way], levels)
        np.testing.assert_allclose(rows, meant if rows.ndim == 2 else meant[0], atol=1e-4)
    assert tested.model.tokens == TEXT


def test_what_may_come_of_a_tree_is_drafted_by_one_pass_and_is_what_is_drafted_without() -> None:
    """Behind each node where the text can leave it so; a hit takes no pass of the draft model at all."""
    left, nodes = 0, len(alone(TEXT))
    for node in range(nodes):
        ahead, inline = drafting(20, "fan")
        tree = ahead.propose(TEXT, LIMIT)
        assert same(tree, alone(TEXT))
        inline.begin(tree)
        way = tree.tokens[list(tree.path(node))[1:]].tolist()
        following = next_of([*TEXT, *way])
        if following in tree.tokens[1:][tree.parents[1:] == node]:
            continue
        text, ran = [*TEXT, *way, following], ahead._model.passes_run
        again = ahead.propose(text, LIMIT)
        assert same(again, alone(text))
        assert ahead._model.passes_run == ran
        assert inline.tally.hits == 1
        left += 1
    assert left > 3


@pytest.mark.parametrize("heard", [True, False])
def test_a_correction_that_the_target_says_early_is_drafted_on(heard: bool) -> None:
    """One that the draft model holds for unlikely is there with what was said, and is not without."""
    ahead, inline = drafting(2, "exit")
    tree = ahead.propose(TEXT, LIMIT)
    head = stream_drafter().head
    assert isinstance(head, Streams)
    odd = int(head.rows(TEXT, 1)[0, :VOCAB].argmin())
    assert odd not in tree.tokens[1:][tree.parents[1:] == 0]
    inline.early = said([odd] * len(tree)) if heard else None
    inline.begin(tree)
    again = ahead.propose([*TEXT, odd], LIMIT)
    assert (inline.tally.hits, inline.tally.misses) == (int(heard), int(not heard))
    assert same(again, alone([*TEXT, odd]))


def test_after_a_miss_a_window_is_drafted_beside_the_last_token_alone() -> None:
    ahead, inline = drafting(3, "window")
    tree = ahead.propose(TEXT, LIMIT)
    assert len(tree) == 1
    inline.begin(tree)
    text = [*TEXT, next_of(TEXT)]
    again = ahead.propose(text, LIMIT)
    assert inline.tally.hits == 1
    assert same(again, alone(text))


def test_passes_end_where_the_rows_do() -> None:
    """All that was looked at stands in the cache; what came of it is as without."""
    ahead, inline = drafting(10**6, "fan")
    text = list(TEXT)
    for _ in range(3):
        tree = ahead.propose(text, LIMIT)
        inline.begin(tree)
        grid = ahead._grid
        assert grid is not None
        assert grid._used <= ahead._model.cache.capacity - len(text)
        assert len(grid.fed) > len(tree)
        text.append(next_of(text))
    assert same(ahead.propose(text, LIMIT), alone(text))


def test_a_context_without_room_for_streams_drafts_nothing() -> None:
    serial = stream_drafter(3)
    assert isinstance(serial.head, Streams)
    ways = Streaming(serial, serial.head)
    ahead = Ahead(serial.head.model, VOCAB, serial, ways, Inline(3), reading=ways)
    ahead.begin(GREEDY)
    assert len(ahead.propose(TEXT, LIMIT)) == 1


def test_work_may_end_at_any_line() -> None:
    """The next proposal is the streams' own, over a model that is free."""
    lines, at = 10**9, 1
    expected = alone([*TEXT, 5])
    while at <= lines:
        ahead, inline = drafting(3, "fan")
        tree = ahead.propose(TEXT, LIMIT)
        killing = Killing(at)
        killing.run(lambda told=inline, tree=tree: told.begin(tree))  # type: ignore[misc]
        if killing.lines < at:
            break
        assert same(ahead.propose([*TEXT, 5], LIMIT), expected)
        at += 11
    assert at > 300


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storyteller in two graphs, with its own draft model, and that once more with two streams, hardly taught."""
    pytest.importorskip("torch")
    from test_drafter_training import RECIPE
    from test_stream_training import course, trained

    from paceline.embedded import embedded_bundle
    from paceline.export.adding_drafters import add_drafters
    from paceline.export.order import Order
    from paceline.export.skips.halving import add_split
    from paceline.export.training.drafter.shape import Sizes, sizes_from
    from paceline.export.training.start import start_from
    from paceline.runtime.bundle.bundle import open_bundle

    place = tmp_path_factory.mktemp("streams")
    start = start_from(embedded_bundle(), drafter=True)
    sizes = sizes_from(start, Sizes(streams=2), open_bundle(embedded_bundle()).manifest.target)
    trained(course(place / "fast", sizes, begin=start.weights, recipe=replace(RECIPE, epochs=0.3)))
    add_drafters(
        embedded_bundle(), Order(source="", drafters={"fast": str(place / "fast")}), place / "teller"
    )
    add_split(place / "teller", 5, place / "split")
    return place / "split"


@pytest.mark.export
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "coupled", "usual"])
@pytest.mark.parametrize("branches", ["exit", "weight", "fan", "window"])
@pytest.mark.parametrize("drafter", ["fast", "fast,lookup"])
def test_answers_are_plain_decodings(
    bundle: Path, drafter: str, branches: Branches, sampling: Sampling
) -> None:
    ask = {"sampling": sampling, "seed": 5, "max_tokens": 40}
    with load(drafter="none") as plain:
        expected = [plain.generate(prompt, **ask).read().tokens for prompt in PROMPTS]  # type: ignore[arg-type]
    with load(bundle, drafter=drafter, threads=2, mirror="on", mirror_branches=branches) as session:
        answers = [session.generate(prompt, **ask).read() for prompt in PROMPTS]  # type: ignore[arg-type]
    assert [answer.tokens for answer in answers] == expected
    tallies = [answer.stats.beside for answer in answers]
    assert sum(tally.passes for tally in tallies if tally is not None) > 0
    assert sum(tally.hits for tally in tallies if tally is not None) > 0
    assert not any(tally.failure for tally in tallies if tally is not None)


@pytest.mark.export
@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "coupled"])
def test_no_delay_and_no_failure_changes_an_answer(bundle: Path, sampling: Sampling) -> None:
    done = endure(bundle, PROMPTS, sampling, 150, 0.05, drafter="fast")
    assert done.hits > 5
    assert done.killed


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "coupled"])
def test_ten_thousand_rounds_of_delays_and_failures(bundle: Path, sampling: Sampling) -> None:
    done = endure(bundle, PROMPTS, sampling, 10_000, 0.02, drafter="fast")
    assert done.hits > 300
    assert done.killed > 50


@pytest.mark.export
def test_plans_count_what_streams_take_beside_the_target(bundle: Path) -> None:
    """Rows of eight passes and of what the target looks at, and logits of four nodes with their streams."""
    rows, planned = list[int](), list[dict[str, int]]()
    for mirror in ("off", "on"):
        with load(
            bundle,
            drafter="fast",
            threads=2,
            mirror=mirror,  # type: ignore[arg-type]
            mirror_branches="weight" if mirror == "on" else None,
            context=256,
            memory=resident() + 500_000_000,
            memory_scope="process",
        ) as session:
            session.generate(PROMPTS[0], max_tokens=8).read()
            rows.append(session._workshop._model("fast").cache.capacity)
            assert session.plan is not None
            planned.append({t.what: t.bytes for t in session.plan.terms if t.part == "drafter"})
    assert rows[1] - rows[0] == FRONTIER * (8 + 3)
    assert planned[1]["cache"] > planned[0]["cache"]
    assert planned[1]["logits"] == pytest.approx(FRONTIER * planned[0]["logits"], rel=0.1)


@pytest.mark.export
def test_a_bundle_of_streams_alone_has_what_goes_on(bundle: Path) -> None:
    from paceline.runtime.manifest import read_manifest

    fast = {"fast": read_manifest(bundle).drafters["fast"]}
    assert all(goes_beside(drafter, fast) for drafter in ("fast", "streams,lookup", "auto"))
    assert not goes_beside("lookup", fast)
