"""`--device auto`: a part goes where it is fastest by what was measured, whole, and fits; ties and unknowns stay."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from careful_device import Driver
from command_line import BUNDLE, call, refused_in_one_line
from plugin_packages import needs_plugin
from small_checkpoints import write_checkpoint
from test_devices import library_that

from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.runtime.budget.libraries import NONE, keep_library
from paceline.runtime.budget.planning import make_plan
from paceline.runtime.bundle.measurements import in_cache_folder, keep, keep_all, read_all
from paceline.runtime.drafters.names import parse
from paceline.runtime.loading import load
from paceline.runtime.model import providers
from paceline.runtime.model.device import find_device
from paceline.runtime.model.key import device_key
from paceline.runtime.model.ort import DeviceError
from paceline.runtime.options import Options
from paceline.runtime.placement import cause, fastest, settle
from paceline.runtime.places import Places
from paceline.runtime.probing import costs, trying
from paceline.runtime.probing.costs import costs_on, timed_parts
from paceline.runtime.probing.trying import Cost
from paceline.runtime.request import Sampling
from paceline.runtime.settle import opened, settled

pytestmark = pytest.mark.export
PROMPT = "the cat sat on the mat"
OWN = Cost(1e-3, 2e-3, 3e-3, 4e-3, 8)
FASTER, SLOWER = Cost(1e-7, 1e-7, 1e-7, 1e-7, 8), Cost(10.0, tokens=1)


def times(factor: float, **changes: float) -> Cost:
    return Cost(**{k: factor * v for k, v in asdict(OWN).items() if isinstance(v, float)} | changes, tokens=8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ({}, "cpu"),
        ({"gpu": times(0.89)}, "gpu"),
        ({"gpu": times(0.91)}, "cpu"),
        ({"gpu": times(0.1, one=0.91e-3)}, "cpu"),
        ({"gpu": times(0.1, far_wide=3.7e-3)}, "cpu"),
        ({"gpu": Cost(1e-5, tokens=1)}, "cpu"),
        ({"gpu": Cost(problem="gone")}, "cpu"),
        ({"gpu": replace(times(0.1), problem="gone")}, "cpu"),
        ({"npu": times(0.6), "gpu": times(0.5)}, "gpu"),
        ({"npu": times(0.6, one=1e-5), "gpu": times(0.5)}, "npu"),
    ],
)
def test_a_part_leaves_the_cpu_for_what_is_faster_in_every_way(others: dict[str, Cost], chosen: str) -> None:
    assert fastest({"cpu": OWN} | others) == chosen
    assert fastest({"cpu": Cost(problem="unknown")} | others) == "cpu"
    assert fastest({"cpu": Cost()} | others) == "cpu"


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static bundle. Of two parts with the same files the costs would be the same."""
    place = tmp_path_factory.mktemp("checkpoints")
    model = write_checkpoint(place / "target", max_position_embeddings=64)
    draft = write_checkpoint(place / "draft", num_hidden_layers=1, max_position_embeddings=64)
    sizes: dict[str, Any] = {"profile": "static", "static_rows": (1, 8), "static_contexts": (64,)}
    order = Order(str(model), drafters={"small": str(draft)}, **sizes)
    return export_bundle(order, tmp_path_factory.mktemp("bundles") / "static").folder


@pytest.fixture(autouse=True)
def _nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def known(careful: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the CPU and the careful device, and no other, have these costs of a bundle."""
    monkeypatch.setattr(
        providers, "PROVIDERS", {word: providers.PROVIDERS[word] for word in ("cpu", careful)}
    )
    monkeypatch.setattr("paceline.runtime.placement.PROVIDERS", providers.PROVIDERS)
    monkeypatch.setattr(trying, "_CHILD", "paceline.no.such.module")  # and nothing is measured

    def write(bundle: Path, there: dict[str, Cost], **choices: Any) -> None:
        options = Options(bundle, threads=1, **choices)
        found = opened(options)
        keep("devices.json", device_key(careful), "", 100)
        keep_library(careful, NONE)
        for word in ("cpu", careful):
            device = find_device(word)
            run, settings = settled(options, found, Places(device, device, device))
            for part in timed_parts(found):
                cost = OWN if word == "cpu" else there.get(part, SLOWER)
                keep_all("places.json", {costs._key(run, settings, part): asdict(cost)}, 300)

    return write


def tokens(bundle: Path, **choices: Any) -> tuple[list[int], Any]:
    with load(bundle, threads=1, **choices) as session:
        answer = session.generate(PROMPT, max_tokens=20, sampling=Sampling()).read()
        return answer.tokens, answer.stats


@pytest.mark.parametrize(
    ("there", "choices", "moved"),
    [
        ({"target": FASTER}, {"device": "auto"}, {"target"}),
        ({"small": FASTER}, {"device": "auto"}, {"small"}),
        ({"target": FASTER, "small": FASTER}, {"device": "auto"}, {"target", "small"}),
        ({"target": FASTER, "small": FASTER}, {"device": "auto", "device_draft": "cpu"}, {"target"}),
        ({"target": FASTER, "small": FASTER}, {"device_draft": "auto"}, {"small"}),
        ({}, {"device": "auto"}, set()),
    ],
)
@pytest.mark.parametrize("drafter", ["small", "auto"])
def test_parts_run_where_they_were_fastest_and_answer_the_same(
    static: Path,
    driver: Driver,
    known: Callable[..., None],
    there: dict[str, Cost],
    choices: dict[str, str],
    moved: set[str],
    drafter: str,
) -> None:
    known(static, there)
    plain, _ = tokens(static, drafter="none")
    found, stats = tokens(static, drafter=drafter, **choices)
    assert found == plain
    assert {Path(path).parent.name for path in driver.opened} == moved
    asked = {"target"} if "device" in choices else set()
    assert stats.placed.keys() == asked | ({"small"} if choices.get("device_draft") != "cpu" else set())
    for part, why in stats.placed.items():
        assert why.startswith(f"{part} on {'careful' if part in moved else 'cpu'}: ")
        assert "cpu takes 1.00 ms a token and 8 2.00 ms" in why


def test_a_drafter_that_is_chosen_later_is_where_it_is_fastest(
    static: Path, driver: Driver, known: Callable[..., None]
) -> None:
    known(static, {"small": FASTER})
    with load(static, threads=1, drafter="none", device="auto") as session:
        assert not driver.opened
        session.set_drafter("small")
        assert {Path(path).parent.name for path in driver.opened} == {"small"}


def test_a_bench_says_where_parts_ran_and_why(
    static: Path, known: Callable[..., None], tmp_path: Path
) -> None:
    known(static, {"target": FASTER})
    (tmp_path / "prompts").write_text('{"turns": ["the cat"]}\n')
    usual = (
        "bench",
        "-b",
        static,
        "-t",
        "1",
        "--max-tokens",
        "4",
        "--device",
        "auto",
        "--drafters",
        "lookup",
    )
    done = call(*usual, "--prompts", tmp_path / "prompts", "--json")
    assert done.json()["machine"]["device"] == "careful"
    assert done.json()["machine"]["placed"]["small"].startswith("small on cpu: ")
    assert "auto: target on careful: " in call(*usual, "--prompts", tmp_path / "prompts").out


def test_with_no_other_device_nothing_is_measured(
    static: Path, known: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(providers.PROVIDERS, "careful")
    done = call("run", "-b", static, "--raw", PROMPT, "-n", "4", "--device", "auto", "--stats", "full")
    assert done.code == 0
    assert "auto: target on cpu: no other device runs here" in done.err
    assert not read_all("places.json")


def test_a_copy_of_the_weights_that_does_not_fit_stays_on_the_cpu(known: Callable[..., None]) -> None:
    known(BUNDLE, {"target": FASTER})
    usual, small = Options(BUNDLE, threads=1, drafter="none"), parse("none", {})
    bundle, settings = settle(usual)
    least = make_plan(bundle, settings, small, None).least
    for more, where in ((1_000_000, "cpu"), (10**9, "careful")):
        _, chosen = settle(replace(usual, device="auto", memory=least + more, memory_scope="process"))
        assert chosen.places.target.name == where
        fits = "does not fit the memory plan" not in chosen.reasons["target"]
        assert fits == (where == "careful")


def test_a_plan_says_where_parts_run_and_why(static: Path, known: Callable[..., None]) -> None:
    known(static, {"small": FASTER})
    usual = ("plan", "-b", static, "-t", "1")
    found = call(*usual, "--device", "auto", "--json").json()
    assert found["devices"] == {"target": "cpu", "small": "careful"}
    assert found["placed"]["small"].startswith("small on careful: careful takes 0.00 ms")
    assert "device    small on careful: careful takes" in call(*usual, "--device", "auto").out
    said = call(*usual, "--device-draft", "careful").out
    assert "small on careful: what it copies of the weights there stands under session" in " ".join(
        said.split()
    )
    assert "device " not in call(*usual).out


def test_a_context_is_not_cut_for_speed(tmp_path: Path, careful: str) -> None:
    model = write_checkpoint(tmp_path / "checkpoint", max_position_embeddings=192)
    order = Order(str(model), profile="static", static_rows=(1,), static_contexts=(48,))
    bundle = export_bundle(order, tmp_path / "bundle").folder
    options = Options(bundle, threads=1)
    found = costs_on(find_device(careful), options, opened(options), ["target"])
    assert found["target"].problem == "its graphs read 48 tokens of the 192 there"
    shorter = costs_on(find_device("cpu"), replace(options, context=48), opened(options), ["target"])
    assert shorter["target"].far_wide > 0


@pytest.mark.parametrize("word", ["qnn", "webgpu"])
def test_what_is_slower_is_measured_once_and_not_chosen(
    static: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """An emulator, and a GPU of software."""
    try:
        find_device(word)
    except DeviceError as error:
        pytest.skip(str(error))
    plain, _ = tokens(static, drafter="none")
    found, stats = tokens(static, drafter="small", device="auto")
    assert found == plain
    assert set(stats.devices.values()) == {"CPUExecutionProvider"}
    for part in ("target", "small"):
        assert stats.placed[part].startswith(f"{part} on cpu: cpu takes ")
        assert f"; {word} takes " in stats.placed[part]
    monkeypatch.setattr(trying, "_CHILD", "paceline.no.such.module")
    assert tokens(static, drafter="small", device="auto")[1].placed == stats.placed
    path = in_cache_folder("places.json")
    assert path is not None
    path.write_text('{"x": 1')
    again = tokens(static, drafter="small", device="auto")[1].placed
    assert "the process that tried it ended with 1" in again["target"]


@needs_plugin("qnn")
def test_it_is_said_once_that_measuring_takes_a_while(static: Path) -> None:
    usual = ("run", "-b", static, "--raw", PROMPT, "-n", "3", "-t", "1", "--device", "auto")
    first = call(*usual)
    for device in ("cpu", "qnn"):
        assert first.err.count(f"--device auto: measuring on {device}, once") == 1
    assert "measuring" not in call(*usual).err


@needs_plugin("qnn")
def test_a_part_that_does_not_run_whole_there_is_no_candidate() -> None:
    _, settings = settle(Options(BUNDLE, threads=1, drafter="small", device="auto"))
    assert settings.places.target.on_cpu
    for part in ("target", "small"):
        assert settings.reasons[part].startswith(f"{part} on cpu: cpu takes ")
        assert "; qnn takes " not in settings.reasons[part]
        assert re.search(
            r"; qnn: (does not take \d+ of \d+ nodes|was exported before qnn)", settings.reasons[part]
        )
        assert "/" not in settings.reasons[part]
        assert len(settings.reasons[part]) < 300


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (
            "/work/a b/target/model.fp16.onnx was exported before qnn could run such graphs, and would be computed "
            "wrongly there: export the model again with --profile static, or run this part on the CPU",
            "was exported before qnn could run such graphs, and would be computed wrongly there",
        ),
        (
            "C:\\a b\\model.onnx was exported before qnn could run such graphs: run this part on the CPU",
            "was exported before qnn could run such graphs",
        ),
        (
            "qnn does not take 2570 of 2696 nodes of /m/target/model.fp16.onnx: Unsqueeze 'Unsqueeze' and 4 more; run "
            "this part on the CPU (docs/devices.md)",
            "does not take 2570 of 2696 nodes",
        ),
        ("qnn cannot open /m/model.onnx: no driver; 'paceline devices' tries it", "cannot open: no driver"),
        ("it ends the process that tries it (SIGSEGV)", "it ends the process that tries it (SIGSEGV)"),
        ("qnn cannot open /m/model.onnx: " + "word " * 99, "cannot open:" + " word" * 36 + " ..."),
    ],
)
def test_a_reason_is_whole_and_names_no_path(problem: str, told: str) -> None:
    assert cause("qnn", problem) == told


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_library_that_ends_its_process_is_no_candidate(tmp_path: Path) -> None:
    library = library_that("raise(SIGSEGV);", tmp_path)
    chosen = ("--device", "auto", "--provider-library", library, "--json")
    done = call("run", "-b", BUNDLE, "--raw", "Once", "-n", "3", "-t", "1", "--drafter", "none", *chosen)
    assert "mine" not in done.json()["stats"]["placed"]["target"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "x", "--device", "auto:1"), "unknown device 'auto:1'"),
        (("run", "x", "--device", "auto", "--device-draft", "fast"), "unknown device 'fast'"),
        (("run", "x", "--device", "auto", "--drafter", "nobody"), "nobody"),
        (("run", "x", "--provider-library", "auto=x.so"), "'auto' is a device of Paceline's own"),
        (("bench", "--perplexity", __file__, "--device", "auto"), "name it in place of --device auto"),
        (("run", "x", "--device", "auto", "--profile", "static"), "has no static graphs"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused_in_one_line(*arguments)
