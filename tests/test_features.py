"""The contract that drafters fed with hidden states rest on: taps, heads, adapters, and models that are leased."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import msgspec
import numpy as np
import pytest
from feature_drafter import AHEAD, TAPS, Witness, kind_of, write_head
from law_subjects import draft_model
from onnxruntime import OrtValue

from paceline import load
from paceline.memory.cache import KeyValueCache
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.contracts import DraftLimit
from paceline.runtime.control.limits import FixedLimit
from paceline.runtime.drafters import kinds
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.manifest import BundleError, Part, read_manifest, write_manifest
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.head import Head
from paceline.runtime.model.model import Model
from paceline.runtime.model.taps import TapBuffer
from paceline.runtime.request import Request, Sampling
from paceline.runtime.session import Session
from paceline.runtime.tree import TokenTree

pytestmark = pytest.mark.export
CPU = find_device("cpu")
PROMPT = list(range(40, 70))
GREEDY = Request(Sampling(), "coupled", 0, 0, 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target with taps, a draft model, and a toy head over the taps."""
    from small_checkpoints import write_checkpoint

    from paceline.export.order import Order
    from paceline.export.pipeline import export_bundle

    base = tmp_path_factory.mktemp("features")
    checkpoint = write_checkpoint(base / "checkpoint")
    order = Order(str(checkpoint), drafters={"small": str(checkpoint)}, taps=TAPS)
    folder = export_bundle(order, base / "bundle").folder
    write_head(folder)
    return folder


@pytest.fixture
def witness(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Witness:
    """The toy drafter is one of the known ones, and says here what it was shown."""
    seen = Witness()
    monkeypatch.setattr(kinds, "KINDS", (*kinds.KINDS, kind_of(seen)))
    return seen


@pytest.fixture
def session(bundle: Path, witness: Witness) -> Iterator[Session]:
    with load(bundle, drafter="witness", threads=1, max_nodes=4, cache="fp32") as made:
        made._drafting = replace(made._drafting, control=FixedLimit(4, 1))
        yield made


def reference(bundle: Path, tokens: list[int], chunk: int = 256) -> np.ndarray:
    """float32[T, columns]: the taps of a text that is read at once."""
    opened = open_bundle(bundle)
    part = opened.manifest.target
    model = Model(Graph(opened.path(part.graph), CPU, 1, part), part, 128, widest=4, chunk=chunk)
    extras = model.prefill(tokens).extras
    return np.hstack([extras[tap] for tap in TAPS])


def said(session: Session, prompt: list[int], tokens: int = 24) -> list[int]:
    return session.generate(prompt, max_tokens=tokens, sampling=Sampling()).read().tokens


def test_every_committed_token_is_shown_once_with_its_hidden_states(
    bundle: Path, session: Session, witness: Witness
) -> None:
    answer = said(session, PROMPT)
    text = [*PROMPT, *answer]
    shown = np.concatenate(witness.shown)
    assert len(shown) in (len(text) - 1, len(text))  # the last token may not have been through the target
    assert np.array_equal(shown, reference(bundle, text)[: len(shown)])


def test_what_is_drafted_from_features_changes_no_token(bundle: Path, session: Session) -> None:
    with load(bundle, drafter="none", threads=1, cache="fp32") as plain:
        assert said(session, PROMPT) == said(plain, PROMPT)


@pytest.mark.parametrize("chunk", [256, 7, 1])
def test_a_prompt_in_chunks_gives_the_taps_of_one_pass(bundle: Path, chunk: int) -> None:
    assert np.array_equal(reference(bundle, PROMPT, chunk), reference(bundle, PROMPT))


def test_the_buffer_holds_the_rows_of_the_text_and_forgets_what_is_taken_back(
    bundle: Path, session: Session
) -> None:
    text = [*PROMPT, *said(session, PROMPT)]
    taps = session._target.taps
    assert taps is not None
    assert taps.held == range(session._target.length)
    rows = np.hstack([taps.rows(tap, 0, taps.held.stop) for tap in TAPS])
    assert np.array_equal(rows, reference(bundle, text)[: len(rows)])
    other = [*PROMPT[:12], 99, 98, 97]
    said(session, other, 4)
    assert taps.held == range(session._target.length)
    rows = np.hstack([taps.rows(tap, 0, 14) for tap in TAPS])
    assert np.array_equal(rows, reference(bundle, other)[:14])


def test_after_a_restored_cache_features_are_unknown_and_nothing_is_made_up(
    bundle: Path, session: Session, witness: Witness, tmp_path: Path
) -> None:
    first = said(session, PROMPT)
    session.save(tmp_path / "saved.cache")
    session.reset()
    assert session.restore(tmp_path / "saved.cache") == len(PROMPT) + len(first) - 1
    taps = session._target.taps
    assert taps is not None
    assert not taps.held
    witness.caught_up.clear()
    text = [*PROMPT, *first, 50, 51]
    said(session, text, 6)
    assert taps.held.start >= len(PROMPT) + len(first) - 1
    with pytest.raises(ValueError, match="are not held"):
        taps.rows(TAPS[0], 0, 3)
    assert not witness.caught_up  # it drafted nothing that rests on rows it never saw
    session.reset()
    said(session, text, 6)  # read again from the start, everything is there
    assert taps.held.start == 0
    assert witness.caught_up


def test_a_text_that_slides_keeps_the_buffer_in_step(bundle: Path, witness: Witness) -> None:
    with load(
        bundle, drafter="witness", threads=1, context=48, max_nodes=2, overflow="slide", cache="fp32"
    ) as session:
        said(session, PROMPT, 60)
        taps = session._target.taps
        assert taps is not None
        assert taps.held == range(session._target.length)
        rows = np.hstack([taps.rows(tap, 0, taps.held.stop) for tap in TAPS])
        assert np.array_equal(rows, reference(bundle, session._target.tokens))


def test_the_plan_counts_the_buffer(bundle: Path, witness: Witness) -> None:
    with load(bundle, drafter="witness", threads=1, memory="2GB") as session:
        assert session.plan is not None
        taps = session._target.taps
        assert taps is not None
        (planned,) = (term.bytes for term in session.plan.terms if term.what == "hidden states of the text")
        assert taps.bytes <= planned < taps.bytes + 4096 * 2


def test_a_drafter_of_features_needs_a_part_that_reads_them(bundle: Path, witness: Witness) -> None:
    parts = dict(read_manifest(bundle).drafters)
    assert kinds.parse("witness", parts).models == ("toy",)
    assert kinds.parse("toy", parts).words[0].kind.word == "witness"
    assert kinds.parse("chain", parts).models == ("small",)
    with pytest.raises(ValueError, match="no draft model 'toy' for chain: it has small"):
        kinds.parse("chain:toy", parts)
    with pytest.raises(ValueError, match="needs a draft model and this bundle has none"):
        kinds.parse("witness", {"small": parts["small"]})


def test_a_head_computes_what_its_graph_says_and_adapters_change_it(bundle: Path) -> None:
    opened = open_bundle(bundle)
    part = opened.manifest.drafters["toy"]
    graph = Graph(opened.path(part.graph), CPU, 1, part)
    head, other = Head(graph, part, widest=8), Head(graph, part, widest=8)
    rows = reference(bundle, PROMPT)[:5]
    before = head.score(PROMPT[:5], rows).copy()
    assert before.shape == (5, AHEAD, part.vocab)
    one = head.score(PROMPT[2:3], rows[2:3])
    assert np.allclose(one[0], before[2], rtol=1e-4, atol=1e-4)
    head.adapters["bias"][7] = 1000.0
    assert head.score(PROMPT[:5], rows)[:, 0].argmax(1).tolist() == [7] * 5
    assert np.array_equal(
        other.score(PROMPT[:5], rows), before
    )  # each user of a graph has adapters of its own
    with pytest.raises(ValueError, match="cannot read 9 tokens"):
        head.score(list(range(9)), np.zeros((9, rows.shape[1]), np.float32))
    with pytest.raises(ValueError, match="features of shape"):
        head.score([1], rows[:1, :5])


def changed(bundle: Path, tmp_path: Path, **fields: object) -> Path:
    """A copy of the bundle whose head says something else."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    manifest = read_manifest(copy)
    part: Part = msgspec.structs.replace(manifest.drafters["toy"], **fields)
    (copy / "manifest.json").unlink()
    broken = msgspec.structs.replace(manifest, drafters={**manifest.drafters, "toy": part})
    try:
        write_manifest(broken, copy)
    except BundleError:
        (copy / "manifest.json").write_bytes(msgspec.json.encode(broken))
    return copy


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"reads": ["hidden.1"]}, r"reads hidden\.1, which the target does not give"),
        ({"features": 7}, "fed with 7"),
        ({"reads": []}, "reads 0 taps"),
        ({"kind": "decoder"}, "a decoder, reads 2 taps"),
        ({"kind": "exit", "reads": [], "features": None, "layers": 5}, "no exit of the target"),
    ],
)
def test_a_part_that_is_not_of_its_kind_is_refused(
    bundle: Path, tmp_path: Path, fields: dict[str, object], why: str
) -> None:
    with pytest.raises(BundleError, match=why):
        open_bundle(changed(bundle, tmp_path, **fields))


def test_a_graph_that_is_not_of_its_kind_is_refused(bundle: Path) -> None:
    opened = open_bundle(bundle)
    part = opened.manifest.drafters["toy"]
    graph = Graph(opened.path(part.graph), CPU, 1, part)
    with pytest.raises(BundleError, match="implies logits"):
        Head(graph, msgspec.structs.replace(part, ahead=3), widest=4)
    target = opened.manifest.target
    with pytest.raises(BundleError, match="implies an input features"):
        Model(
            Graph(opened.path(target.graph), CPU, 1, target),
            msgspec.structs.replace(target, kind="feature decoder", features=8, reads=["hidden"]),
            64,
            widest=2,
        )


@pytest.mark.parametrize("name", ["token_ids", "features", "logits"])
def test_an_adapter_is_not_called_as_what_every_graph_has(bundle: Path, name: str) -> None:
    opened = open_bundle(bundle)
    part = opened.manifest.drafters["toy"]
    with pytest.raises(
        BundleError, match=rf"drafters/toy/model\.onnx: an adapter may not be called '{name}'"
    ):
        Head(
            Graph(opened.path(part.graph), CPU, 1, part),
            msgspec.structs.replace(part, adapters={name: [3]}),
            widest=4,
        )


@pytest.mark.parametrize("name", ["cache_k.0", "new_v.1", "tree_mask", "hidden"])
def test_an_adapter_of_a_decoder_is_not_called_as_its_cache(bundle: Path, name: str) -> None:
    opened = open_bundle(bundle)
    part = opened.manifest.target
    with pytest.raises(BundleError, match="may not be called"):
        Model(
            Graph(opened.path(part.graph), CPU, 1, part),
            msgspec.structs.replace(part, adapters={name: [3]}),
            64,
            widest=2,
        )


def test_a_buffer_knows_what_it_holds() -> None:
    buffer = TapBuffer(["hidden"], 3, 10)

    def rows(first: int, count: int) -> dict[str, np.ndarray]:
        return {"hidden": np.arange(3.0 * first, 3.0 * (first + count), dtype=np.float32).reshape(count, 3)}

    buffer.write(4, rows(4, 3), slice(None))  # the first four came from somewhere else
    assert buffer.held == range(4, 7)
    buffer.write(7, rows(0, 4), (0, 2))
    assert buffer.held == range(4, 9)
    assert buffer.rows("hidden", 7, 9)[:, 0].tolist() == [0.0, 6.0]
    buffer.cut(5)
    assert buffer.held == range(4, 5)
    buffer.cut(2)
    assert not buffer.held
    buffer.write(2, rows(2, 1), slice(None))
    assert buffer.held == range(2, 3)
    with pytest.raises(ValueError, match="rows 1 to 3 of hidden are not held"):
        buffer.rows("hidden", 1, 3)


def test_a_leased_model_is_run_by_one_thread_and_found_again_afterwards() -> None:
    text, limit = [5, 6, 7, 8, 5, 6], DraftLimit(4, 3)

    def proposed(model: Model) -> list[int]:
        chain = ChainModel(model, 4096)
        chain.begin(GREEDY)
        tree: TokenTree = chain.propose(text, limit)
        return tree.tokens.tolist()

    fresh = proposed(draft_model())
    model = draft_model()
    assert proposed(model) == fresh
    refused: list[str] = []

    def elsewhere() -> None:
        try:
            model.extend([9])
        except RuntimeError as error:
            refused.append(str(error))
        try:
            with model.lease():
                pass
        except RuntimeError as error:
            refused.append(str(error))

    with model.lease() as mine:
        mine.keep_common(text)
        mine.extend([1, 2, 3])  # a future that was only guessed
        other = Thread(target=elsewhere)
        other.start()
        other.join()
    assert len(refused) == 2
    assert proposed(model) == fresh


class Elsewhere(KeyValueCache):
    """Rows that ONNX Runtime owns, as a device's would be: the model only ever sees the interface."""

    def inputs(self) -> dict[str, object]:  # type: ignore[override]
        return {name: OrtValue.ortvalue_from_numpy(array) for name, array in super().inputs().items()}


@pytest.mark.parametrize("aliased", [True, False])
def test_a_model_runs_over_whatever_cache_it_is_given(aliased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not aliased is how other devices are driven: what is fed and read is copied, the cache is not."""
    own = draft_model()
    part = own.part
    cache = Elsewhere(part.layers, part.kv_heads, own.cache.capacity, part.head_dim)
    monkeypatch.setattr(own._graph, "on_cpu", aliased)
    other = Model(own._graph, part, own.context, widest=3, scratch=24, rows=cache)
    for model in (own, other):
        model.prefill(PROMPT)
    assert np.array_equal(own.extend([3, 4]), other.extend([3, 4]))
    assert other.cache is cache
