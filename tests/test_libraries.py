"""What the library of a device takes: guessed, measured, and counted for whatever runs there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from careful_device import CAREFUL
from planned_memory import taken
from plugin_packages import lack_of, needs_plugin

from paceline.embedded import embedded_bundle
from paceline.memory.cache import CacheFormat
from paceline.memory.model import LIBRARIES
from paceline.memory.plan import Plan
from paceline.memory.size import parse_size
from paceline.runtime.budget.libraries import (
    NONE,
    Library,
    brought,
    guess,
    keep_library,
    library_of,
    recall_library,
)
from paceline.runtime.budget.planning import estimated, make_plan
from paceline.runtime.bundle.measurements import in_cache_folder
from paceline.runtime.drafters.names import parse
from paceline.runtime.model.device import Device, find_device
from paceline.runtime.model.providers import CPU, PROVIDERS
from paceline.runtime.options import Options
from paceline.runtime.placement import settle
from paceline.runtime.probing.trying import probed

CACHES: tuple[CacheFormat, ...] = ("fp32", "fp16", "int8")
THERE = Library(123_000_000, 7_000_000)
"""Of the careful device, as if it had been measured."""


@pytest.fixture(autouse=True)
def _nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))


def plan(drafter: str = "chain", cache: CacheFormat = "fp16", **devices: str) -> Plan:
    """A plan of the embedded bundle without a budget."""
    options = Options(embedded_bundle(), threads=1, drafter=drafter, cache=cache, **devices)
    bundle, settings = settle(options)
    return make_plan(bundle, settings, parse(drafter, bundle.manifest.drafters), None, 0)


def size_of(made: Plan, what: str, part: str) -> int:
    return sum(term.bytes for term in made.terms if (term.what, term.part) == (what, part))


def test_a_device_counts_once_and_not_where_it_has_graphs_already(careful: str) -> None:
    keep_library(careful, THERE)
    cpu, one, same = find_device("cpu"), find_device(careful), Device(careful, CAREFUL)
    other = Device("qnn", PROVIDERS["qnn"])
    assert library_of(cpu) == guess(CPU) == NONE
    assert brought([cpu, cpu]) == 0
    assert brought([one, same, cpu]) == THERE.once
    assert brought([one, other], [cpu]) == THERE.once + guess(PROVIDERS["qnn"]).once
    assert brought([one, other], [same]) == guess(PROVIDERS["qnn"]).once


@pytest.mark.parametrize("cache", CACHES)
def test_every_form_of_the_cache_counts_what_was_measured(careful: str, cache: CacheFormat) -> None:
    before = plan(cache=cache, device_draft=careful)
    keep_library(careful, THERE)
    after = plan(cache=cache, device_draft=careful)
    assert size_of(before, LIBRARIES, "process") == guess(CAREFUL).once
    assert size_of(after, LIBRARIES, "process") == THERE.once
    graphs = size_of(after, "session", "drafter") - size_of(before, "session", "drafter")
    assert graphs == THERE.each - guess(CAREFUL).each


def test_it_counts_where_a_part_runs_there_and_once_for_all_of_them(careful: str) -> None:
    keep_library(careful, THERE)
    for devices in (
        {"device": careful},
        {"device": careful, "device_draft": "cpu"},
        {"device_draft": careful},
    ):
        assert size_of(plan(**devices), LIBRARIES, "process") == THERE.once, devices
    assert size_of(plan("none", device_draft=careful), LIBRARIES, "process") == 0
    assert size_of(plan(), LIBRARIES, "process") == 0


def test_a_plan_says_that_a_library_was_not_measured(careful: str) -> None:
    bundle, settings = settle(Options(embedded_bundle(), threads=1, drafter="chain", device_draft=careful))
    name = parse("chain", bundle.manifest.drafters)
    made = make_plan(bundle, settings, name, None, 0)
    assert f"the library of {careful}" in estimated(bundle, settings, name, made)
    keep_library(careful, THERE)
    assert f"the library of {careful}" not in estimated(bundle, settings, name, made)


@pytest.mark.parametrize("value", ["[1]", "[-1, 2]", "[1, 1e20]", "[true, 2]", '"much"', "[1, null]"])
def test_what_makes_no_sense_is_not_believed(careful: str, value: str) -> None:
    keep_library(careful, THERE)
    path = in_cache_folder("libraries.json")
    assert path is not None
    (key,) = json.loads(path.read_text())
    path.write_text(f'{{"{key}": {value}}}')
    assert recall_library(careful) is None
    assert library_of(find_device(careful)) == guess(CAREFUL)


@pytest.mark.parametrize("word", ["qnn", "webgpu", "openvino"])
def test_a_guess_is_neither_half_nor_twice_what_is_measured(word: str) -> None:
    if lack := lack_of(word):
        pytest.skip(lack)
    assert probed(word).problem == ""
    found, guessed = recall_library(word), guess(PROVIDERS[word])
    assert found is not None
    assert found.once / 2 < guessed.once < 2 * found.once
    assert found.each / 2 < guessed.each


@pytest.mark.export
@needs_plugin("qnn")
def test_a_budget_for_qnn_is_refused_before_it_is_passed_whatever_the_cache(tmp_path: Path) -> None:
    from small_checkpoints import write_checkpoint

    from paceline.export.order import Order
    from paceline.export.pipeline import export_bundle

    model = str(write_checkpoint(tmp_path / "model", max_position_embeddings=64))
    sizes: dict[str, Any] = {"profile_draft": "static", "static_rows": (1, 4), "static_contexts": (64,)}
    folder = export_bundle(Order(model, drafters={"small": model}, **sizes), tmp_path / "bundle").folder

    def least(cache: str) -> int:
        """Bytes that a refusal names, in a process that loads nothing."""
        choices = ("--device-draft", "qnn", "--cache", cache, "--memory", "60MB", "-t", "1")
        command = [sys.executable, "-m", "paceline", "run", "-b", str(folder), "--drafter", "chain:small"]
        refused = subprocess.run([*command, *choices, "hello"], capture_output=True, text=True, check=False)
        assert "plan:" not in refused.stderr
        needed = re.search(r"needs ([0-9.]+ MB) at least", refused.stderr)
        assert needed, refused.stderr
        return parse_size(needed[1].replace(" ", ""))

    before = {form: least(form) for form in CACHES}
    assert recall_library("qnn") is not None
    peak, planned = taken(folder, "chain:small", memory="700MB", device_draft="qnn", cache="fp16")
    assert 0.85 * planned < peak < planned + 3_000_000
    after = {form: least(form) for form in CACHES}
    for needed in (*before.values(), *after.values()):
        assert 0.85 * peak < needed < 1.3 * peak
