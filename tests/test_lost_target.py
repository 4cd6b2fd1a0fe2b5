"""A target whose device is lost in the middle of an answer goes on on the CPU, token for token the same."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from careful_device import Driver
from command_line import call
from feature_drafter import write_bundle
from small_checkpoints import write_checkpoint
from small_exits import exit_bundle
from small_skips import skip_bundle
from test_halves import split_bundle

from paceline import load
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.memory.budget import resident
from paceline.runtime.model.device import find_device
from paceline.runtime.model.ort import DeviceError
from paceline.runtime.request import Accept, Sampling

pytestmark = pytest.mark.export
PROMPT = "the cat sat on the mat"
USUAL: dict[str, Any] = {"threads": 1, "cache": "fp32"}


@pytest.fixture(scope="module", params=["portable", "static"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose draft model is its target."""
    model = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), max_position_embeddings=64)
    sizes: dict[str, Any] = {"static_rows": (1, 8), "static_contexts": (32, 64)}
    order = Order(
        str(model),
        drafters={"small": str(model)},
        profile=request.param,
        **(sizes if request.param == "static" else {}),
    )
    return export_bundle(order, tmp_path_factory.mktemp("bundles") / request.param).folder


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target with taps, a draft model, and two heads over the taps."""
    return write_bundle(tmp_path_factory.mktemp("features"))


def said(session: Any, tokens: int = 30, prompt: Any = PROMPT, **choices: Any) -> list[int]:
    answer = session.generate(prompt, max_tokens=tokens, **{"sampling": Sampling()} | choices)
    found: list[int] = answer.read().tokens
    return found


def plain(bundle: Path, tokens: int = 30, prompt: Any = PROMPT, **choices: Any) -> list[int]:
    loading = {name: choices.pop(name) for name in ("overflow", "context") if name in choices}
    with load(bundle, drafter="none", **USUAL, **loading) as session:
        return said(session, tokens, prompt, **choices)


@pytest.mark.parametrize("drafter", ["none", "small", "tree:small", "small,lookup", "auto"])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 17])
def test_the_answer_goes_on_token_for_token(
    bundle: Path, careful: str, driver: Driver, drafter: str, count: int
) -> None:
    wanted = plain(bundle)
    with load(bundle, drafter=drafter, device=careful, device_draft="cpu", **USUAL) as session:
        driver.fails_after(count)
        assert said(session) == wanted
        lost = dict(session.stats.lost)
        if lost or drafter == "none":  # with a draft model so few passes may have been enough
            assert list(lost) == ["target"]
            assert lost["target"].endswith("on careful: the device was removed")
            assert session.device == "cpu"
        runs = driver.runs
        assert said(session) == wanted
        assert said(session, 12, "every morning she rides") == plain(bundle, 12, "every morning she rides")
        assert driver.runs == runs or not lost


def test_draft_models_on_the_same_device_are_lost_with_it(bundle: Path, careful: str, driver: Driver) -> None:
    wanted = plain(bundle)
    with load(bundle, drafter="small", device=careful, **USUAL) as session:
        driver.fails_after(6)
        assert said(session) == wanted
        assert set(session.stats.lost) == {"small", "target"}
        assert said(session) == wanted


def test_devices_that_fail_at_random_points(bundle: Path, careful: str, driver: Driver) -> None:
    luck, lost = random.Random(5), 0
    choices: dict[str, Any] = {"sampling": Sampling(temperature=1.0), "seed": 11}
    wanted = {"greedy": plain(bundle), "coupled": plain(bundle, **choices)}
    for _ in range(12):
        with load(bundle, drafter="small", device=careful, device_draft="cpu", **USUAL) as session:
            driver.fails_after(luck.randrange(40))
            assert said(session, **choices) == wanted["coupled"]
            assert said(session) == wanted["greedy"]
            lost += len(session.stats.lost)
    assert lost > 6


@pytest.mark.parametrize("accept", ["rejection", "block", "typical"])
def test_rules_that_draw_go_on_with_noise_of_their_own(
    bundle: Path, careful: str, driver: Driver, accept: Accept
) -> None:
    """The same noise again would let what follows repeat what was drawn."""
    choices: dict[str, Any] = {"accept": accept, "seed": 3, "sampling": Sampling(temperature=1.5)}
    with load(bundle, drafter="none", device=careful, **USUAL) as session:
        driver.fails_after(9)
        found = said(session, **choices)
    usual = plain(bundle, **choices)
    same = next(at for at, pair in enumerate(zip(found, usual, strict=True)) if pair[0] != pair[1])
    assert len(found) == 30
    assert same >= 5


def test_a_text_that_slides_goes_on(bundle: Path, careful: str, driver: Driver) -> None:
    choices: dict[str, Any] = {"overflow": "slide", "context": 32}
    wanted = plain(bundle, 90, **choices)
    for count in (20, 60):
        with load(bundle, drafter="none", device=careful, **USUAL, **choices) as session:
            driver.fails_after(count)
            assert said(session, 90) == wanted
            assert list(session.stats.lost) == ["target"]


def test_a_chat_beside_it_and_one_that_begins_later_go_on_too(
    bundle: Path, careful: str, driver: Driver
) -> None:
    wanted = plain(bundle)
    with load(bundle, drafter="none", device=careful, **USUAL) as first, first.another() as second:
        assert said(second, 5) == wanted[:5]
        driver.fails_after(4)
        assert said(first) == wanted
        with first.another() as third, second.another() as fourth:
            assert said(third) == said(fourth) == wanted
            assert not third.stats.lost
        assert said(second) == wanted
        assert list(second.stats.lost) == ["target"]


@pytest.mark.parametrize("name", ["toy", "tall", "tall,small"])
@pytest.mark.parametrize("count", [1, 4])
def test_heads_go_on_reading_its_hidden_states(
    heads: Path, careful: str, driver: Driver, name: str, count: int
) -> None:
    prompt = list(range(40, 70))
    wanted = plain(heads, 24, prompt)
    with load(heads, drafter=name, device=careful, device_draft="cpu", **USUAL) as session:
        driver.fails_after(count)
        assert said(session, 24, prompt) == wanted
        assert list(session.stats.lost) == ["target"]
        drafted = session.stats.drafted
        assert said(session, 24, prompt) == wanted
        assert drafted > 0 < session.stats.drafted


@pytest.mark.parametrize("name", ["swift", "del", "roo"])
def test_what_drafts_with_its_layers_drafts_no_more(careful: str, driver: Driver, name: str) -> None:
    folder = (skip_bundle() if name == "swift" else exit_bundle()).folder
    wanted = plain(folder, 20, "Once upon a time")
    with load(folder, drafter=name, device=careful, **USUAL) as session:
        driver.fails_after(12)
        assert said(session, 20, "Once upon a time") == wanted
        assert {name, "target"} == set(session.stats.lost)
        assert said(session, 20, "Once upon a time") == wanted


def test_what_was_drafted_beside_it_is_dropped(bundle: Path, careful: str, driver: Driver) -> None:
    wanted = plain(bundle)
    choices: dict[str, Any] = {"mirror": "on", "mirror_branches": "weight", "threads": 2, "cache": "fp32"}
    for count in (1, 3, 5):
        with load(bundle, drafter="small", device=careful, device_draft="cpu", **choices) as session:
            driver.fails_after(count)
            assert said(session) == wanted
            assert list(session.stats.lost) == ["target"]
            assert said(session) == wanted


def test_a_target_in_two_graphs_goes_on_in_two(careful: str, driver: Driver) -> None:
    """Its first graph says early what may follow, on the CPU too."""
    folder = split_bundle().folder
    wanted = plain(folder, 30, "Once upon a time")
    choices: dict[str, Any] = {"mirror": "on", "mirror_branches": "exit", "threads": 2, "cache": "fp32"}
    with load(folder, drafter="small", device=careful, device_draft="cpu", **choices) as session:
        driver.fails_after(6)
        assert said(session, 30, "Once upon a time") == wanted
        assert list(session.stats.lost) == ["target"]
        assert said(session, 30, "Once upon a time") == wanted
        assert session.stats.beside is not None
        assert session.stats.beside.hits > 0
        assert session.stats.beside.failure is None


def test_it_is_told_once_on_stderr(
    bundle: Path, careful: str, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.fails_in_answers(3, monkeypatch)
    usual = ("run", "-b", bundle, "--raw", PROMPT, "-n", "20", "--temp", "0", "-t", "1", "--drafter", "none")
    done = call(*usual, "--device", careful, "--stats", "full")
    assert done.code == 0
    assert done.err.count("the model goes on on the CPU (") == 1
    assert done.out == call(*usual).out
    stats = call(*usual, "--device", careful, "--json").json()["stats"]
    assert list(stats["lost"]) == ["target"]
    assert stats["devices"]["target"] == "CPUExecutionProvider"


def test_where_the_cpu_cannot_open_it_the_error_says_why(
    bundle: Path, careful: str, driver: Driver, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    with load(copy, drafter="none", device=careful, **USUAL) as session:
        driver.fails_after(3)
        (copy / "target" / "model.onnx").unlink()
        with pytest.raises(
            DeviceError, match=r"the device was removed; it cannot go on on the CPU: .*target"
        ) as it:
            said(session)
        with pytest.raises(DeviceError) as again:
            said(session)
        assert str(again.value) == str(it.value)
        assert "\n" not in str(it.value)


@pytest.mark.parametrize("more", [0, 200_000_000])
def test_it_goes_on_within_the_memory_plan_or_not_at_all(
    bundle: Path, careful: str, driver: Driver, more: int
) -> None:
    wanted = plain(bundle)
    most = resident() + 500_000_000  # of a process that holds what the tests before left in it
    budget: dict[str, Any] = {"memory": most, "memory_scope": "process"}
    with load(bundle, drafter="none", device=careful, **USUAL, **budget) as session:
        assert session.plan is not None
        driver.fails_after(3)
        left = most - session._memory.used()
        held = np.ones((0 if more else left - 100_000) // 8)
        if more:
            assert said(session) == wanted
        else:
            with pytest.raises(DeviceError, match=r"there it takes .* and the memory plan has .* left"):
                said(session)
        del held


@pytest.mark.parametrize("word", ["qnn", "webgpu"])
def test_an_emulator_or_a_gpu_of_software_is_lost(tmp_path: Path, driver: Driver, word: str) -> None:
    try:
        find_device(word)
    except DeviceError as error:
        pytest.skip(str(error))
    model = write_checkpoint(tmp_path / "checkpoint", max_position_embeddings=64)
    order = Order(str(model), profile="static", static_rows=(1,), static_contexts=(64,))
    bundle = export_bundle(order, tmp_path / "bundle").folder
    driver.word = word
    with load(bundle, drafter="none", device=word, **USUAL) as session:
        driver.fails_after(7)
        assert said(session, 16) == plain(bundle, 16)
        assert list(session.stats.lost) == ["target"]
        assert driver.runs == 8
        assert said(session, 16) == plain(bundle, 16)
