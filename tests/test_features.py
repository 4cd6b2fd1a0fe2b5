"""The contract that drafters fed with hidden states rest on: taps, heads, adapters, and models that are leased."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")
from draft_models import draft_model
from feature_drafter import PROMPT, ROWS, TAPS, Witness, opened, reference, said, write_bundle
from onnxruntime import OrtValue

from paceline.memory.cache import KeyValueCache
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.contracts import DraftLimit
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.manifest import BundleError
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.taps import TapBuffer
from paceline.runtime.request import Request, Sampling
from paceline.runtime.session import Session
from paceline.runtime.tree import TokenTree

pytestmark = pytest.mark.export
CPU = find_device("cpu")
GREEDY = Request(Sampling(), "coupled", 0, 0, 1)


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


def test_every_committed_token_is_shown_once_with_its_hidden_states(
    bundle: Path, session: Session, witness: Witness
) -> None:
    answer = said(session, PROMPT)
    text = [*PROMPT, *answer]
    shown = np.concatenate(witness.shown)
    assert len(shown) in (len(text) - 1, len(text))  # the last token may not have been through the target
    assert np.array_equal(shown, reference(bundle, text)[: len(shown)])


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


def test_a_graph_that_is_not_of_its_kind_is_refused(bundle: Path) -> None:
    opened = open_bundle(bundle)
    target = opened.manifest.target
    with pytest.raises(BundleError, match="implies an input features"):
        Model(
            Graph(opened.path(target.graph), CPU, 1, target),
            msgspec.structs.replace(target, kind="feature decoder", features=8, reads=["hidden"]),
            64,
            widest=2,
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
    before = buffer.epoch
    buffer.widen(["hidden"])
    assert (buffer.held, buffer.epoch) == (range(2, 3), before)
    with pytest.raises(ValueError, match="rows 1 to 3 of hidden are not held"):
        buffer.rows("hidden", 1, 3)
    buffer.widen(["hidden.0"])  # of the row that is held this one is not known
    assert not buffer.held
    assert buffer.epoch > before
    assert buffer.taps == {"hidden", "hidden.0"}


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
    if not aliased:
        monkeypatch.setattr(own._graph, "_elsewhere", set(own._graph.inputs))
    other = Model(own._graph, part, own.context, widest=3, scratch=24, rows=cache)
    for model in (own, other):
        model.prefill(PROMPT)
    assert np.array_equal(own.extend([3, 4]), other.extend([3, 4]))
    assert other.cache is cache
