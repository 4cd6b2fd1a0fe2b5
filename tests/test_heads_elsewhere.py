"""Draft heads on a device of their own: the target's hidden states cross over, and no token changes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from careful_device import Driver
from command_line import call, refused_in_one_line
from feature_drafter import PROMPT, ROWS, opened, said, write_bundle
from plugin_packages import needs_plugin

from paceline.runtime.loading import load

pytestmark = pytest.mark.export
ELSEWHERE = {"device": "cpu", "device_draft": "cpu", "device_heads": "careful"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target with taps, a draft model, and two heads over the taps."""
    return write_bundle(tmp_path_factory.mktemp("features"))


@pytest.mark.parametrize("name", [*ROWS, "toy,tall", "tall,small"])
def test_a_head_reads_and_drafts_there_and_changes_no_token(
    bundle: Path, careful: str, driver: Driver, name: str
) -> None:
    with (
        opened(bundle, name, **ELSEWHERE) as session,
        opened(bundle, name) as here,
        load(bundle, drafter="none", threads=1, cache="fp32") as plain,
    ):
        assert said(session, PROMPT) == said(plain, PROMPT) == said(here, PROMPT)
        assert session.stats.accepted_by_depth == here.stats.accepted_by_depth
        assert session.stats.drafted == here.stats.drafted > 0
    assert {Path(path).parent.name for path in driver.opened} == set(name.split(",")) & set(ROWS)


@pytest.mark.parametrize(
    ("choices", "there"),
    [
        ({"device_draft": "careful"}, True),
        ({"device": "careful", "device_draft": "cpu"}, False),
        ({"device": "careful", "device_heads": "cpu"}, False),
    ],
    ids=["as draft models", "as draft models where the target is elsewhere", "by name"],
)
def test_heads_are_where_draft_models_are_unless_they_are_named(
    bundle: Path, careful: str, driver: Driver, choices: dict[str, str], there: bool
) -> None:
    with opened(bundle, "toy", **choices) as session:
        assert said(session, PROMPT, 4)
    assert any("toy" in path for path in driver.opened) == there


@pytest.mark.parametrize("name", [*ROWS, "toy,lookup", "auto"])
@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_a_head_whose_device_is_lost_costs_speed_and_no_token(
    bundle: Path, careful: str, driver: Driver, name: str, count: int
) -> None:
    with load(bundle, drafter="none", threads=1, cache="fp32") as plain:
        usual = said(plain, PROMPT)
    with load(bundle, drafter=name, threads=1, cache="fp32", **ELSEWHERE) as session:
        driver.fails_after(count)
        assert said(session, PROMPT) == usual
        assert name == "auto" or list(session.stats.lost) == [name.split(",")[0]]


def test_heads_are_timed_beside_target_and_draft_models(bundle: Path) -> None:
    shown = call("devices", "-b", bundle, "-t", "1", "--json").json()["devices"]
    costs = shown[0]["costs"]
    assert {name: cost["tokens"] for name, cost in costs.items()} == {
        "target": 8,
        "small": 8,
        "toy": 6,
        "tall": 6,
    }
    assert all(0 < cost[each] < 1 for cost in costs.values() for each in ("one", "wide"))


@needs_plugin("qnn")
def test_a_head_that_does_not_run_whole_there_is_not_to_be_exported_again(bundle: Path) -> None:
    """No profile of the export makes another graph of it."""
    usual = ("run", "-b", bundle, "--drafter", "toy", "--device", "cpu", "--raw", "the cat")
    said = refused_in_one_line(*usual, "--device-heads", "qnn")
    assert "qnn does not take" in said
    assert "; run this part on the CPU (docs/devices.md)" in said


@pytest.mark.parametrize("word", ["gpu", "cpu:1", "head"])
def test_a_device_that_is_none_is_refused_by_its_name(bundle: Path, word: str) -> None:
    said = refused_in_one_line("run", "-b", bundle, "--device-heads", word, "--drafter", "toy", "x")
    assert repr(word) in said
