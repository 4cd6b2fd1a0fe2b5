"""A draft model that drafts several tokens a call proposes what it proposes token by token."""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from paceline.embedded import embedded_bundle
from paceline.export import unroll
from paceline.export.drafts import DEPTHS, MOST_LAYERS, check_drafts, write_drafts
from paceline.export.errors import ExportError
from paceline.memory.cache import CacheFormat
from paceline.runtime.bundle import constants
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.bundle.survey import survey
from paceline.runtime.contracts import DraftLimit
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.unrolled import Unrolled
from paceline.runtime.request import Request, Sampling

PROMPT = [5, 17, 900, 33, 2048, 77, 1200, 8]
FREE = DraftLimit(16, 16)
SAMPLINGS = [
    Sampling(0.0),
    Sampling(0.0, frequency_penalty=0.4),
    Sampling(0.0, presence_penalty=2.0, frequency_penalty=-0.3),
    Sampling(0.0, logit_bias={7: 4.0, 300: -2.0}, banned=frozenset({11, 12, 13})),
    Sampling(0.0, no_repeat_ngram=2),
    Sampling(0.0, repetition_penalty=1.2),
    Sampling(1.0),
    Sampling(0.7, top_p=0.9),
]


@cache
def small() -> tuple[Path, Part]:
    """The folder of a storyteller whose draft model, of two layers, has graphs that draft, and that model."""
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder)
    shutil.copytree(embedded_bundle(), folder, dirs_exist_ok=True)
    part = open_bundle(folder).manifest.drafters["small"]
    graph = folder / part.graph
    names = write_drafts(ir.load(graph), graph, MOST_LAYERS)
    place = Path(part.graph).parent.as_posix()
    return folder, msgspec.structs.replace(part, drafts={n: f"{place}/{name}" for n, name in names.items()})


def model(form: CacheFormat = "fp32", context: int = 400) -> Model:
    folder, part = small()
    graph = Graph(folder / part.graph_for(form), find_device("cpu"), 1, part)
    return Model(graph, part, context, 4, cache=form)


def unrolled(held: Model, form: CacheFormat = "fp32") -> Unrolled:
    folder, part = small()

    def opened(depth: int) -> Graph:
        return Graph(folder / part.draft_for(depth, form), find_device("cpu"), 1, part)

    return Unrolled(held, opened)


def test_no_graph_is_written_that_a_loader_would_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every level makes the table of tokens anew; with a large one eight levels are more than admission takes."""
    folder, part = small()
    given, written = ir.load(folder / part.graph), []
    for room in (1 << 24, 1 << 22, 0):
        monkeypatch.setattr(constants, "_AND", room)
        monkeypatch.setattr(constants, "_TIMES", 0)
        names = write_drafts(given, tmp_path / "model.onnx", MOST_LAYERS)
        written.append(list(names))
        for name in names.values():
            constants.follow_constants(survey((tmp_path / name).read_bytes()))
    assert len(written[0]) > len(written[-1]), written
    assert all(list(DEPTHS[: len(depths)]) == depths for depths in written)


@pytest.fixture(scope="module")
def drafters() -> tuple[ChainModel, ChainModel, Unrolled]:
    """By single passes, and by calls."""
    one, other = model(), model()
    calls = unrolled(other)
    return ChainModel(one, 4096), ChainModel(other, 4096, unrolled=calls), calls


def rounds(a: ChainModel, b: ChainModel, request: Request, limits: Sequence[DraftLimit]) -> Iterator[int]:
    """Propose for a text that grows by what is drafted, or by other tokens; yields how many tokens both propose."""
    rng = np.random.default_rng(request.seed)
    tokens = list(PROMPT)
    for drafter in (a, b):
        drafter.reset()
        drafter.begin(request)
    for limit in limits:
        mine, theirs = a.propose(tokens, limit), b.propose(tokens, limit)
        assert mine.tokens.tolist() == theirs.tokens.tolist()
        assert mine.scores == pytest.approx(theirs.scores, rel=1e-5)
        yield len(mine) - 1
        taken = int(rng.integers(0, len(mine)))
        tokens += [*mine.tokens[1 : taken + 1].tolist(), int(rng.integers(20, 4000))]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_calls_propose_what_single_passes_propose(
    drafters: tuple[ChainModel, ChainModel, Unrolled], sampling: Sampling
) -> None:
    by_pass, by_call, calls = drafters
    request = Request(sampling, "coupled", 3, 0, 4)
    limits = [DraftLimit(depth, depth) for depth in (16, 4, 1, 2, 3, 5, 8, 7, 6, 12)] * 2
    before = calls.calls_run
    drafted = list(rounds(by_pass, by_call, request, limits))
    assert sum(drafted) == sum(limit.depth for limit in limits)
    leaps = sampling.temperature == 0 and sampling.repetition_penalty == 1
    assert (calls.calls_run > before) == leaps


def test_all_that_was_accepted_is_read_in_the_next_call(
    drafters: tuple[ChainModel, ChainModel, Unrolled],
) -> None:
    by_pass, by_call, calls = drafters
    tokens = list(PROMPT)
    for drafter in (by_pass, by_call):
        drafter.reset()
        drafter.begin(Request(Sampling(0.0), "coupled", 0, 0, 4))
    for number in range(6):
        before, passes = calls.calls_run, calls.model.passes_run
        made = by_call.propose(tokens, DraftLimit(4, 4)).tokens.tolist()
        assert made == by_pass.propose(tokens, DraftLimit(4, 4)).tokens.tolist()
        assert calls.calls_run == before + 1
        assert calls.model.passes_run == passes + (number == 0), "one call a round, but for the prompt"
        tokens += [*made[1:], made[-1] + 1]


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8"])
def test_a_call_leaves_the_rows_of_single_passes(form: CacheFormat) -> None:
    one, other = model(form), model(form)
    calls = unrolled(other, form)
    for levels in calls.depths:
        for count in (1, 2):
            for held in (one, other):
                held.rewind(0)
                held.prefill(PROMPT)
            unread = [3, 99][:count]
            tokens, logits = calls.draft(unread, levels)
            row = one.extend(unread)
            for level, token in enumerate(tokens.tolist()):
                assert np.array_equal(logits[level], row)
                assert token == int(row.argmax())
                if level + 1 < levels:
                    row = one.extend([token])
            assert one.tokens == other.tokens
            ends = [held.cache.inputs() for held in (one, other)]
            for name, rows in ends[0].items():
                upto = (slice(None), slice(one.length))
                assert np.array_equal(rows[upto], ends[1][name][upto]), name


def test_noise_chooses_and_is_no_part_of_the_logits() -> None:
    held = model()
    calls = unrolled(held)
    held.prefill(PROMPT)
    calls.noise[:] = 0
    plain = calls.draft([3], 4)[1].copy()
    held.rewind(len(PROMPT))
    calls.noise[0, 77] = 1e6
    tokens, logits = calls.draft([3], 4)
    assert tokens[0] == 77
    assert np.array_equal(logits[0], plain[0])
    assert not np.array_equal(logits[1], plain[1]), "the next level reads what was chosen"


def test_a_chain_ends_with_the_context() -> None:
    held = model(context=12)
    calls = unrolled(held)
    drafter = ChainModel(held, 4096, unrolled=calls)
    drafter.begin(Request(Sampling(0.0), "coupled", 0, 0, 4))
    assert len(drafter.propose(PROMPT, FREE)) == 1 + 4
    assert held.length == 11


def test_a_model_without_these_graphs_drafts_by_single_passes() -> None:
    """As one of a bundle that was exported before, and the storyteller's."""
    drafter = ChainModel(model(), 4096)
    drafter.begin(Request(Sampling(0.0), "coupled", 0, 0, 4))
    assert len(drafter.propose(PROMPT, DraftLimit(4, 4))) == 5
    assert not open_bundle(embedded_bundle()).manifest.drafters["small"].drafts


def test_who_gets_graphs_that_draft(tmp_path: Path) -> None:
    """A model of more layers none, for there a call saves nothing, nor one whose graph counts its rows."""
    folder, part = small()
    graph = ir.load(folder / part.graph)
    assert write_drafts(graph, tmp_path / "model.onnx", MOST_LAYERS + 1) == {}
    assert list(part.drafts) == list(DEPTHS)
    check_drafts("small", folder, part)
    first = next(iter(graph.graph))
    graph.graph.insert_before(first, ir.node("Shape", [graph.graph.inputs[0]]))
    assert unroll.unrolled(graph, 2) is None


def test_a_graph_that_drafts_something_else_is_refused(tmp_path: Path) -> None:
    folder, part = small()
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    graph = ir.load(tmp_path / part.drafts[4])
    adds = [node for node in graph.graph if node.op_type == "Add"]
    adds[1].op_type = "Sub"  # noise is taken away in the second level
    (tmp_path / part.drafts[4]).write_bytes(ir.to_proto(graph).SerializeToString())
    with pytest.raises(ExportError, match="does not choose the best tokens"):
        check_drafts("small", tmp_path, part)
