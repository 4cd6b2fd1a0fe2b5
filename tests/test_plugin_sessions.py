"""Sessions whose parts run on other devices than the CPU: the same answers, and no answer is lost with a device."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from careful_device import CAREFUL, Driver
from command_line import call
from plugin_packages import lack_of, needs_plugin
from small_checkpoints import write_checkpoint

from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.runtime.bundle.bundle import Bundle, open_bundle
from paceline.runtime.loading import load
from paceline.runtime.model.device import Device, find_device
from paceline.runtime.model.graph import Graph, RunError
from paceline.runtime.model.model import Model
from paceline.runtime.model.ort import DeviceError
from paceline.runtime.model.passes import Bound
from paceline.runtime.model.plugins import turn_of
from paceline.runtime.model.providers import PROVIDERS
from paceline.runtime.model.rows import SharedRows
from paceline.runtime.request import Sampling
from paceline.runtime.tree import TokenTree

pytestmark = pytest.mark.export

PROMPT = "the cat sat on the mat"
TEXT = [3, 5, 7, 11, 13, 17, 19, 23, 29]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portable bundle whose draft model is its target, so that drafts are accepted."""
    model = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), max_position_embeddings=64)
    out = tmp_path_factory.mktemp("bundles") / "portable"
    order = Order(str(model), drafters={"small": str(model)}, profile="portable")
    return export_bundle(order, out).folder


@pytest.fixture(autouse=True)
def _graphs_of_a_test_go() -> Iterator[None]:
    yield
    gc.collect()


def tokens(bundle: Path, drafter: str = "none", **choices: Any) -> tuple[list[int], Any]:
    with load(bundle, drafter=drafter, threads=1, **choices) as session:
        answer = session.generate(PROMPT, max_tokens=30, sampling=Sampling()).read()
        return answer.tokens, answer.stats


def models(bundle: Bundle, device: Device, form: str = "fp32") -> tuple[Model, Model]:
    """The target on the CPU, and on another device."""
    part = bundle.manifest.target
    path = part.graph_for(form)  # type: ignore[arg-type]
    graphs = [Graph(bundle.path(path), where, 1, part) for where in (find_device("cpu"), device)]
    first, second = (Model(g, part, 64, widest=8, chunk=4, scratch=8, cache=form) for g in graphs)  # type: ignore[arg-type]
    return first, second


def assert_alike(here: Model, there: Model, tolerance: float) -> None:
    """A prompt in chunks from an empty cache, trees, rows of a draft that stay or go, and a text that is begun anew."""
    tree = TokenTree.picked([5, 6, 7, 8], [-1, 0, 0, 1], ("root", "a", "a", "a"))
    for _ in range(2):
        for model in (here, there):
            model.rewind(0)
            model.prefill(TEXT)
        for path in ((0, 1, 3), (0, 2), (0,)):
            scored = [model.score(tree).logits.copy() for model in (here, there)]
            assert np.abs(scored[0] - scored[1]).max() <= tolerance * np.abs(scored[0]).max()
            for model in (here, there):
                model.commit(path)
        mask = np.array([[True, False, True, False], [False, True, False, True]])
        for model in (here, there):
            model.grow([4, 9], [model.length] * 2, np.eye(2, dtype=np.bool_), 0)
        grown = [model.grow([2, 3], [model.length + 1] * 2, mask, 2).copy() for model in (here, there)]
        assert np.abs(grown[0] - grown[1]).max() <= tolerance * np.abs(grown[0]).max()
        for model in (here, there):
            model.adopt([1, 3], [9, 3])
        rows = [model.extend([1]).copy() for model in (here, there)]
        assert np.abs(rows[0] - rows[1]).max() <= tolerance * np.abs(rows[0]).max()


def test_another_device_gives_the_cpu_s_logits(bundle: Path, careful: str) -> None:
    assert_alike(*models(open_bundle(bundle), find_device(careful)), 1e-6)


def test_no_tensor_without_elements_reaches_a_device_that_it_would_end(
    bundle: Path, careful: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pasts, real = list[int](), Bound.run

    def run(self: Bound, shrink: bool = False) -> None:
        if self._past is not None and self._full:
            pasts.append(int(self._past[0]))
        real(self, shrink)

    monkeypatch.setattr(Bound, "run", run)
    tokens(bundle, "small", device=careful)
    assert min(pasts) == 1
    here, there = models(open_bundle(bundle), find_device(careful))
    empty = {"tree_mask": np.zeros((0, 0), np.bool_)}
    assert Bound(here._graph, empty, {})
    with pytest.raises(RunError, match="empty tree_mask, which careful does not take"):
        Bound(there._graph, empty, {}).run()


@pytest.mark.parametrize(
    "choices", [{"device": "careful"}, {"device_draft": "careful"}], ids=["target", "draft"]
)
@pytest.mark.parametrize("drafter", ["small", "tree:small", "auto"])
def test_answers_are_plain_decoding_s(
    bundle: Path, careful: str, drafter: str, choices: dict[str, str]
) -> None:
    plain, _ = tokens(bundle)
    found, stats = tokens(bundle, drafter, **choices)
    assert found == plain
    assert stats.devices["small"] == "CPUExecutionProvider"
    assert not stats.lost


def test_calls_of_a_provider_that_stands_no_two_at_a_time_take_turns(bundle: Path, careful: str) -> None:
    opened = open_bundle(bundle)
    part = opened.manifest.target
    graph = Graph(opened.path(part.graph), find_device(careful), 1, part)
    model, done = Model(graph, part, 64, widest=4), threading.Event()

    def run() -> None:
        model.extend([1, 2])
        done.set()

    with turn_of(CAREFUL):
        other = threading.Thread(target=run)
        other.start()
        assert not done.wait(0.3)
    other.join(10)
    assert done.is_set()


@pytest.mark.parametrize("drafter", ["small", "tree:small", "small,lookup", "auto"])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 11])
def test_a_draft_model_whose_device_is_lost_costs_speed_and_no_token(
    bundle: Path, careful: str, driver: Driver, drafter: str, count: int
) -> None:
    plain, _ = tokens(bundle)
    with load(bundle, drafter=drafter, device_draft=careful, threads=1) as session:
        driver.fails_after(count)
        answer = session.generate(PROMPT, max_tokens=30, sampling=Sampling()).read()
        assert answer.tokens == plain
        if drafter in ("small", "tree:small"):  # others may have had no need of it
            assert list(answer.stats.lost) == ["small"]
            assert "the device was removed; run this part on the CPU" in answer.stats.lost["small"]
        again = session.generate(PROMPT, max_tokens=30, sampling=Sampling()).read()
        assert again.tokens == plain
        assert again.stats.lost == answer.stats.lost or drafter in ("auto", "small,lookup")


def test_a_lost_draft_model_is_told_once_on_stderr(
    bundle: Path, careful: str, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.fails_in_answers(3, monkeypatch)
    usual = ("run", "-b", bundle, "--raw", PROMPT, "-n", "20", "--temp", "0", "-t", "1", "--drafter")
    done = call(*usual, "small", "--device-draft", careful)
    assert done.code == 0
    assert done.err.count("small drafts no more") == 1
    assert done.out == call(*usual, "none").out
    found = call(*usual, "small", "--device-draft", careful, "--json")
    assert list(found.json()["stats"]["lost"]) == ["small"]


def accepted(bundle: Path, drafter: str, *choices: str) -> int:
    """Of 16 tokens, drawn by a rule under which it is not the clock that decides how much is drafted: how little a
    slow device drafts otherwise says nothing of what it drafts. So cold that a wrong draft model has 3."""
    drawn = ("-n", "16", "--temp", "0.01", "--accept", "rejection", "--seed", "1", "-t", "1", "--json")
    found = call("run", "-b", bundle, "--raw", PROMPT, *drawn, "--drafter", drafter, *choices).json()
    assert len(found["token_ids"]) == 16
    return int(found["stats"]["accepted"])


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with graphs of fixed sizes."""
    model = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), max_position_embeddings=64)
    out = tmp_path_factory.mktemp("bundles") / "static"
    order = Order(
        str(model),
        drafters={"small": str(model)},
        profile="static",
        static_rows=(1, 4),
        static_contexts=(64,),
    )
    return export_bundle(order, out).folder


@pytest.mark.parametrize("word", ["openvino", "qnn", "webgpu"])
@pytest.mark.parametrize("choice", ["--device", "--device-draft"])
def test_static_graphs_answer_as_plain_decoding_on_the_cpu(static: Path, word: str, choice: str) -> None:
    """QNN on a processor is an emulator of its own hardware: right is what counts, not how fast."""
    if lack := lack_of(word):
        pytest.skip(lack)
    usual = ("run", "-b", static, "--raw", PROMPT, "-n", "16", "--temp", "0", "-t", "1", "--json")
    plain = call(*usual, "--drafter", "none").json()
    found = call(*usual, "--drafter", "small", choice, word).json()
    assert found["token_ids"] == plain["token_ids"]
    assert found["stats"]["devices"]["small"] == PROVIDERS[word].name
    assert accepted(static, "small", choice, word) > 8


@needs_plugin("openvino")
@pytest.mark.parametrize("form", ["fp32", "fp16", "int8"])
def test_openvino_takes_portable_graphs_whole_and_sees_what_is_written_into_the_cache(
    bundle: Path, form: str
) -> None:
    here, there = models(open_bundle(bundle), find_device("openvino"), form)
    assert isinstance(there.cache, SharedRows)
    assert_alike(here, there, 2e-5 if form == "fp32" else 2e-2)


@needs_plugin("openvino")
def test_arrays_that_are_bound_once_would_be_stale_on_openvino(bundle: Path) -> None:
    """Why inputs are copied at each run there: the negative control of the test above."""
    opened, part = open_bundle(bundle), open_bundle(bundle).manifest.target
    found = []
    for stale in (False, True):
        graph = Graph(opened.path(part.graph), find_device("openvino"), 1, part)
        if stale:
            graph._elsewhere, graph._shared = set(), None
        model = Model(graph, part, 64, widest=4)
        found.append([model.extend([token]).copy() for token in (5, 6, 7)])
    assert not any(np.allclose(seen, bound, atol=1e-2) for seen, bound in zip(*found, strict=True))


@needs_plugin("openvino")
@pytest.mark.parametrize(
    ("choices", "where"),
    [
        (["--device-draft", "openvino"], {"target": "CPU", "small": "OpenVINO"}),
        (["--device", "openvino"], {"target": "OpenVINO", "small": "OpenVINO"}),
        (["--device", "openvino", "--device-draft", "cpu"], {"target": "OpenVINO", "small": "CPU"}),
    ],
    ids=["draft", "both", "target"],
)
@pytest.mark.parametrize("drafter", ["small", "tree:small"])
def test_parts_on_openvino_answer_as_plain_decoding_on_the_cpu(
    bundle: Path, choices: list[str], where: dict[str, str], drafter: str
) -> None:
    usual = ("run", "-b", bundle, "--raw", PROMPT, "-n", "40", "--temp", "0", "-t", "1", "--json")
    plain = call(*usual, "--drafter", "none").json()
    found = call(*usual, "--drafter", drafter, *choices).json()
    assert found["token_ids"] == plain["token_ids"]
    assert found["stats"]["devices"] == {n: f"{w}ExecutionProvider" for n, w in where.items()}
    assert accepted(bundle, drafter, *choices) > 8


@needs_plugin("qnn")
def test_a_graph_with_free_sizes_is_refused_on_qnn_by_the_names_of_its_nodes(bundle: Path) -> None:
    """Left alone ONNX Runtime runs nearly all of it on the CPU, and says that QNN runs it."""
    done = call("run", "-b", bundle, "x", "-n", "3", "--raw", "--drafter", "small", "--device-draft", "qnn")
    assert done.code == 1
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if line.startswith("paceline: error:")]
    assert "qnn does not take" in lines[0]
    assert "or export the model with --profile static" in lines[0]


@pytest.fixture
def webgpu() -> Device:
    """Where there is one: `.ci/software_gpu` brings one of software to machines without."""
    if lack := lack_of("webgpu"):
        pytest.skip(lack)
    return find_device("webgpu")


def test_webgpu_takes_portable_graphs_but_for_reckoning_with_sizes(bundle: Path, webgpu: Device) -> None:
    """From an empty cache on: an empty tensor would end the process, and two calls at a time would too."""
    assert_alike(*models(open_bundle(bundle), webgpu), 1e-3)


@pytest.mark.parametrize("choice", ["--device", "--device-draft"])
def test_parts_on_webgpu_answer_as_plain_decoding_on_the_cpu(
    bundle: Path, webgpu: Device, choice: str
) -> None:
    usual = (
        "run",
        "-b",
        bundle,
        "--raw",
        PROMPT,
        "-n",
        "20",
        "--temp",
        "0",
        "-t",
        "1",
        "--json",
        "--cache",
        "fp32",
    )
    plain = call(*usual, "--drafter", "none").json()
    found = call(*usual, "--drafter", "small", choice, "webgpu").json()
    assert found["token_ids"] == plain["token_ids"]
    assert found["stats"]["devices"]["small"] == "WebGpuExecutionProvider"
    assert accepted(bundle, "small", choice, "webgpu", "--cache", "fp32") > 8


def test_two_sessions_on_webgpu_answer_at_the_same_time(bundle: Path, webgpu: Device) -> None:
    """Without the one lock this ends the process within seconds."""
    plain, _ = tokens(bundle)
    found = list[list[int]]()

    def work() -> None:
        for _ in range(2):
            found.append(tokens(bundle, "small", device="webgpu", cache="fp32")[0])

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [plain] * 4


def test_webgpu_refuses_what_it_does_not_take_by_name(bundle: Path, webgpu: Device) -> None:
    with pytest.raises(DeviceError, match=r"webgpu does not take .* nodes of .*int8\.onnx: .*Round"):
        models(open_bundle(bundle), webgpu, "int8")
