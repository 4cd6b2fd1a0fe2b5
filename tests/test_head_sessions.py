"""Heads in sessions: the words are those of plain decoding, and memory, texts and names are what they should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from command_line import call
from feature_drafter import DEPTHS, PROMPT, ROWS, TAPS, Witness, opened, reference, said, write_bundle

from paceline import load
from paceline.memory.model import TABLES
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.request import Accept, Sampling
from paceline.runtime.session import Session

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target with taps, a draft model, and two heads over the taps."""
    return write_bundle(tmp_path_factory.mktemp("features"))


@pytest.fixture(params=list(ROWS))
def session(bundle: Path, request: pytest.FixtureRequest) -> Iterator[Session]:
    with opened(bundle, request.param) as made:
        yield made


@pytest.fixture
def witness(session: Session) -> Witness:
    """What the head of the session is shown."""
    seen = Witness()
    seen.watch(session._drafting.drafter)
    return seen


@pytest.mark.parametrize("name", [*ROWS, "toy,lookup", "tall,small"])
@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 8, 16, 64])
def test_what_is_drafted_from_features_changes_no_token(bundle: Path, name: str, nodes: int) -> None:
    with (
        opened(bundle, name, nodes) as session,
        load(bundle, drafter="none", threads=1, cache="fp32") as plain,
    ):
        assert said(session, PROMPT) == said(plain, PROMPT)
        assert session.stats.drafted > 0


@pytest.mark.parametrize("name", list(ROWS))
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.2),
        Sampling(frequency_penalty=0.4, banned=frozenset({60, 61, 62}), no_repeat_ngram=3),
        Sampling(temperature=1.0, logit_bias={5: 4.0}, not_before={1: 20}, phrases={(5, 6): -30.0}),
    ],
)
def test_nor_do_the_choices_of_a_request(bundle: Path, name: str, sampling: Sampling) -> None:
    with opened(bundle, name, 8) as session, load(bundle, drafter="none", threads=1, cache="fp32") as plain:
        for seed in range(3):
            told = [
                made.generate(PROMPT, max_tokens=24, sampling=sampling, seed=seed).read().tokens
                for made in (session, plain)
            ]
            assert told[0] == told[1]
        assert session.stats.drafted > 0


@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_a_head_runs_over_every_form_of_the_cache(bundle: Path, form: str) -> None:
    with (
        opened(bundle, "tall", 8, cache=form) as session,
        load(bundle, drafter="none", threads=1, cache=form) as plain,
    ):
        head = session._workshop._calls["tall"]
        assert head.model.cache.form == form
        assert said(session, PROMPT) == said(plain, PROMPT)
        assert session.stats.drafted > 0


@pytest.mark.parametrize("accept", ["rejection", "block", "typical"])
@pytest.mark.parametrize("name", [*ROWS, "tall,lookup"])
def test_an_answer_that_depends_on_drafts_is_that_of_its_seed(
    bundle: Path, name: str, accept: Accept
) -> None:
    def answers(session: Session, seeds: list[int]) -> list[list[int]]:
        hot = Sampling(temperature=1.0)
        return [
            session.generate(PROMPT, max_tokens=20, sampling=hot, accept=accept, seed=seed).read().tokens
            for seed in seeds
        ]

    with load(bundle, drafter=name, threads=1) as session, load(bundle, drafter=name, threads=1) as other:
        first = answers(session, [1, 2, 3])
        assert session.stats.drafted > 0
        assert answers(other, [3, 2, 1]) == first[::-1]
        assert len(set(map(tuple, first))) > 1


def test_all_graphs_of_a_head_share_their_weights(bundle: Path) -> None:
    with opened(bundle, "tall") as session:
        said(session, PROMPT)
        head = session._workshop._calls["tall"]
        head.open()
        graphs = [g for (path, *_), g in session._shared._graphs.items() if path.startswith("drafters/tall/")]
        assert len(graphs) == 1 + len(DEPTHS)
        assert len({id(graph.weights) for graph in graphs}) == 1


def test_after_a_restored_cache_features_are_unknown_and_nothing_is_made_up(
    bundle: Path, session: Session, witness: Witness, tmp_path: Path
) -> None:
    first = said(session, PROMPT)
    session.save(tmp_path / "saved.cache")
    session.reset()
    kept = session.restore(tmp_path / "saved.cache")
    assert kept == len(PROMPT) + len(first) - 1
    taps, head = session._target.taps, next(iter(session._workshop._calls.values()))
    assert taps is not None
    assert not taps.held
    witness.read.clear()
    text = [*PROMPT, *first]
    more = said(session, text, 6)
    assert witness.refused == [len(text)]  # no row that it reads is known: it drafted nothing
    assert taps.held.start == kept
    assert head.model.length <= len(text) + len(more) - 1 - kept  # it goes on from what came since
    with pytest.raises(ValueError, match="are not held"):
        taps.rows(TAPS[0], 0, 3)
    session.reset()
    assert said(session, text, 6) == more
    assert taps.held.start == 0
    assert witness.refused == [len(text)]  # read again from the start, everything is there
    with load(bundle, drafter="none", threads=1, cache="fp32") as plain:
        assert said(plain, text, 6) == more


def test_a_conversation_that_goes_back_and_on_is_read_again_only_where_it_changed(session: Session) -> None:
    head = next(iter(session._workshop._calls.values()))
    first = said(session, PROMPT)
    passes = head.model.passes_run
    said(session, [*PROMPT, *first[:4], 50], 2)
    assert head.model.passes_run - passes <= 4
    if head.model.part.layers:
        assert head.model.tokens[: len(PROMPT) + 3] == [*PROMPT[1:], *first[:4]]


@pytest.mark.parametrize("name", list(ROWS))
def test_a_text_that_slides_keeps_the_buffer_in_step(bundle: Path, name: str) -> None:
    with opened(bundle, name, 2, context=48, overflow="slide") as session:
        told = said(session, PROMPT, 60)
        assert session.stats.drafted > 0
        taps = session._target.taps
        assert taps is not None
        assert taps.held == range(session._target.length)
        rows = np.hstack([taps.rows(tap, 0, taps.held.stop) for tap in TAPS])
        assert np.array_equal(rows, reference(bundle, session._target.tokens))
    with load(bundle, drafter="none", threads=1, context=48, overflow="slide", cache="fp32") as plain:
        assert said(plain, PROMPT, 60) == told


def test_a_head_that_is_asked_for_later_drafts_from_what_comes_then(bundle: Path) -> None:
    """Another set of taps makes every row unknown; the heads that were there go on with the same buffer."""
    with opened(bundle, "none") as session:
        told = said(session, PROMPT, 8)
        session.set_drafter("tall")
        session._drafting = replace(session._drafting, control=FixedLimit(4, 4))
        more = said(session, [*PROMPT, *told], 12)
        assert session.stats.drafted > 0
        assert session._target.taps is not None
        assert session._target.taps.held.start >= len(PROMPT) + len(told) - 1
    with opened(bundle, "none") as plain:
        assert said(plain, [*PROMPT, *told], 12) == more


@pytest.mark.parametrize("name", list(ROWS))
def test_the_plan_counts_the_buffers(bundle: Path, name: str) -> None:
    with load(bundle, drafter=name, threads=1, memory="2GB") as session:
        assert session.plan is not None
        taps, head = session._target.taps, session._workshop._calls[name]
        assert taps is not None
        (planned,) = (term.bytes for term in session.plan.terms if term.what == "hidden states of the text")
        assert taps.bytes <= planned < taps.bytes + 4096 * 2
        terms = {term.what: term.bytes for term in session.plan.terms if term.part == "drafter"}
        assert head.bytes <= terms["scores of levels"] <= 2 * head.bytes + 5 * 4096
        assert terms["cache"] >= head.model.cache.bytes
        assert terms["logits"] >= 4 * head.model.part.hidden


def test_heads_are_named_listed_and_offered(bundle: Path) -> None:
    with opened(bundle, "head:tall") as session:
        assert session.drafter_names() == ["none", "chain", "tree", "head", "lookup", "suffix", "recycle"]
        said(session, PROMPT, 4)
        assert set(session.stats.accepted_by_source) <= {"head:tall"}
        assert set(session.stats.devices) == {"target", "tall"}
        session.set_drafter("auto")
        said(session, PROMPT, 24)
        arms = {arm.name for arm in session._drafting.control._arms}
        assert {"head:toy", "head:tall", "chain", "head:toy,lookup", "head:tall,lookup", "none"} <= arms


def test_memory_pressure_takes_a_head_s_cache_and_gives_it_back(bundle: Path) -> None:
    with opened(bundle, "tall") as session:
        told = said(session, PROMPT, 6)
        head, ceiling = session._workshop._calls["tall"], session._settings.room
        session._workshop.shed(replace(ceiling, models=False))
        assert head.model.length == 0
        session._workshop.shed(ceiling)
        more = said(session, [*PROMPT, *told], 6)
        assert 0 < head.model.length <= len(more)  # hidden states went, too: it goes on from what came since
        session._workshop.shed(replace(ceiling, draft_rows=16))
        assert head.context == 16
        more += said(session, [*PROMPT, *told, *more], 6)
        assert 0 < head.model.length <= 16
        with opened(bundle, "none") as plain:
            assert said(plain, PROMPT, 18) == [*told, *more]


@pytest.mark.parametrize("name", [*ROWS, "tall,lookup", "auto"])
def test_a_budget_changes_no_word_and_holds_what_it_says(bundle: Path, name: str) -> None:
    with load(bundle, drafter="none", threads=1) as plain:
        words = said(plain, PROMPT)
    with load(bundle, drafter=name, threads=1, memory="2GB") as roomy:
        assert roomy.plan is not None
        least = roomy.plan.least - roomy.plan.start
    for budget in (least + 3_000_000, 1_000_000_000):
        with load(bundle, drafter=name, threads=1, memory=budget) as session:
            assert session.plan is not None
            buffers = ("cache", "new rows", "logits", "scores of levels", TABLES)
            for part, size in session.held_bytes().items():
                planned = sum(t.bytes for t in session.plan.terms if t.part == part and t.what in buffers)
                assert size <= planned, part
            assert said(session, PROMPT) == words


def test_what_drafting_costs_is_measured_once_by_levels(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    for _ in range(2):
        with load(bundle, drafter="tall", threads=1) as session:
            (arm,) = session._drafting.control._arms
            assert arm.depth == DEPTHS[-1]
            assert arm.step > 0
        known = json.loads((tmp_path / "costs.json").read_text())
        levels = [
            level for level, _ in known[next(name for name in known if name.endswith(f" {DEPTHS[-1]}"))][1]
        ]
        assert levels == sorted(DEPTHS)
    assert len(known) == 2


def test_inspect_says_what_a_head_is(bundle: Path) -> None:
    told = " ".join(call("inspect", "-b", bundle).out.split())
    assert "head tall model toy head" in told
    assert (
        "drafts 1, 2, 3, 4 or 6 levels in one call (toy), 213 of 320 tokens, from hidden, hidden.0 of the"
        in told
    )
    found = call("inspect", "-b", bundle, "--json").json()["drafters"]["tall"]
    assert found["drafts"] == {str(n): f"drafters/tall/draft.{n}.onnx" for n in DEPTHS}
    assert found["method"] == "toy"


def test_commands_take_a_head_by_name(bundle: Path) -> None:
    words = ("-b", bundle, "--temp", "0", "--max-tokens", "8", "--raw", "--cache", "fp32")
    plain = call("run", "the cat sat", *words, "--drafter", "none")
    assert plain.code == 0, plain.err
    for name in ("head:tall", "toy", "head:toy,lookup"):
        done = call("run", "the cat sat", *words, "--drafter", name)
        assert (done.code, done.out) == (0, plain.out), done.err
    refused = call("run", "the cat sat", "-b", bundle, "--drafter", "head:small")
    assert refused.code == 1
    assert "no draft head 'small' for head: it has toy, tall" in refused.err
    bare = call("run", "Hello", "--drafter", "head")
    assert "drafter head needs a draft head and this bundle has none" in bare.err
    assert bare.err.count("\n") == 1


def test_hidden_states_are_kept_while_a_drafter_reads_them(bundle: Path) -> None:
    with opened(bundle, "tall") as session:
        taps, workshop = session._target.taps, session._workshop
        assert taps is not None
        told, most = said(session, PROMPT, 6), taps.bytes
        workshop.shed(replace(session._settings.room, models=False))
        assert (taps.bytes, taps.held) == (0, range(0))
        told += said(session, [*PROMPT, *told], 6)
        assert (taps.bytes, taps.held) == (0, range(0))
        workshop.shed(session._settings.room)
        session.set_drafter("none")
        assert taps.bytes == 0
        session.set_drafter("tall")
        session._drafting = replace(session._drafting, control=FixedLimit(4, 4))
        told += said(session, [*PROMPT, *told], 12)
        assert session.stats.drafted > 0
        assert taps.bytes == most
        assert session._target.taps is taps
        with opened(bundle, "none") as plain:
            assert said(plain, PROMPT, 24) == told
