"""What `--mirror` comes to: what `auto` chose and why, what a plan says of it, and what is told of a wish in vain."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from command_line import call, copied_bundle

from paceline import load
from paceline.embedded import embedded_bundle
from paceline.memory.errors import ArgumentError
from paceline.runtime import overlapping
from paceline.runtime.budget.planning import make_plan, mirror_bytes
from paceline.runtime.drafters.names import parse
from paceline.runtime.manifest import read_manifest, write_manifest
from paceline.runtime.options import Options
from paceline.runtime.placement import settle

Seconds = Callable[[int], float]
PROMPT = "Once upon a time, a dog"


@pytest.mark.parametrize("faster", [True, False])
def test_auto_goes_by_what_passes_cost(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the target with all threads and with one less, and of the draft model: as they were measured here."""
    asked = list[tuple[float, ...]]()

    def judged(together: Seconds, alone: Seconds, step: float, chance: float, *usual: float) -> float:
        asked.append((together(1), together(9), alone(1), alone(9), step, chance))
        return 1.04 if faster else 1.02

    monkeypatch.setattr(overlapping, "gain", judged)
    with load(drafter="chain", threads=2, mirror="auto") as session:
        assert (session._workshop.beside is not None) == faster
        said = f"{'on, predicted 1.04' if faster else 'off, predicted 1.02'} times drafting before the target, by small"
        assert str(session.stats.as_dict()["mirror"]).startswith(said)
    [(one, nine, one_alone, nine_alone, step, chance)] = asked
    assert 0 < one < nine < 1
    assert 0 < one_alone < nine_alone < 1
    assert 0 < step < one_alone
    assert 0.3 < chance < 1


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"threads": 1}, "off, one thread"),
        ({"drafter": "lookup"}, "off, lookup runs nothing that could go on beside the model"),
        ({"drafter": "none"}, "off, none runs nothing that could go on beside the model"),
        (
            {"memory": "300MB"},
            "off, what passes cost is not known yet, and --memory and plan measure nothing",
        ),
    ],
)
def test_auto_says_why_it_is_off(
    choices: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    with load(**({"drafter": "chain", "threads": 2, "mirror": "auto"} | choices)) as session:
        assert session._workshop.beside is None
        assert session.stats.mirror == why
        assert session.generate(PROMPT, max_tokens=2).read().stats.as_dict()["mirror"] == why


def test_what_auto_chose_is_told_and_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan measures nothing, and goes by what is known as a load with a budget does."""
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    auto = ["--mirror", "auto", "--threads", "2", "--drafter", "chain"]
    unknown = call("plan", *auto).out
    assert "  mirror    auto: off, what passes cost is not known yet" in unknown
    assert "threads" not in unknown
    done = call("run", *auto, "--stats", "full", "-n", "4", PROMPT)
    [line] = [line for line in done.err.splitlines() if line.startswith("mirror auto: ")]
    assert re.match(r"mirror auto: (on|off), predicted \d\.\d\d times drafting before the target", line)
    planned = json.loads(call("plan", *auto, "--json").out)["mirror"]
    assert re.match(r"(on|off), predicted \d\.\d\d times", planned)
    benched = json.loads(call("bench", *auto[:4], "--limit", "1", "--max-tokens", "4", "--json").out)[
        "machine"
    ]
    assert re.match(r"(on|off), predicted ", benched["mirrored"])
    assert call("run", "--stats", "full", "-n", "4", PROMPT).err.count("mirror") == 0


def test_a_plan_names_the_mirror_and_what_it_adds() -> None:
    """As the bytes by which the draft cache of the plan grows; plans without it say nothing of it."""
    plans = {
        mirror: json.loads(
            call("plan", "--drafter", "chain", "--threads", "2", "--mirror", mirror, "--json").out
        )
        for mirror in ("off", "on")
    }
    caches = {
        mirror: sum(p["bytes"] for p in plan["parts"] if (p["part"], p["what"]) == ("drafter", "cache"))
        for mirror, plan in plans.items()
    }
    bundle, chosen = settle(Options(embedded_bundle(), threads=2, drafter="chain", mirror="on"))
    name = parse("chain", bundle.manifest.drafters)
    made = make_plan(bundle, chosen, name, None)
    rows, graph = mirror_bytes(bundle, chosen, name, made)
    assert caches["on"] - caches["off"] == pytest.approx(rows, abs=2 * 4096 * 4)
    assert rows > 0 == graph
    said = call("plan", "--drafter", "chain", "--threads", "2", "--mirror", "on").out
    assert "  mirror    on, by weight: cache rows of draft passes beside the target" in said
    assert "the target has 1 of 2 threads" in " ".join(said.split())
    assert "mirror" not in call("plan", "--drafter", "chain", "--threads", "2").out


@pytest.mark.parametrize(
    ("drafter", "said"),
    [("lookup", True), ("none", True), ("tree", False), ("chain,lookup", False), ("auto", False)],
)
def test_a_thread_that_nobody_uses_is_told(drafter: str, said: bool) -> None:
    done = call("run", "--mirror", "on", "--threads", "2", "--drafter", drafter, "-n", "4", PROMPT)
    assert done.code == 0
    assert ("--mirror on takes a thread and is not used" in done.err) == said


@pytest.mark.parametrize("drafter", ["lookup", "auto"])
def test_a_bundle_that_has_nothing_to_go_on_with_is_told_so(drafter: str, tmp_path: Path) -> None:
    """As where it has something and the drafter is another one: the same words, and no error."""
    bundle = copied_bundle(tmp_path)
    write_manifest(msgspec.structs.replace(read_manifest(bundle), drafters={}), bundle)
    with pytest.warns(UserWarning, match=f"takes a thread and is not used: {drafter} runs nothing"):
        session = load(bundle, drafter=drafter, threads=2, mirror="on")
    session.close()
    with load(bundle, drafter=drafter, threads=2, mirror="auto") as session:
        assert session.stats.mirror == "off, this bundle has nothing that could go on beside the model"


def test_branches_without_a_mirror_are_refused_by_name() -> None:
    done = call("run", "--mirror-branches", "exit", PROMPT)
    assert done.code != 0
    assert "--mirror-branches says what is drafted beside the target: give --mirror on or auto" in " ".join(
        done.err.split()
    )
    with pytest.raises(ArgumentError, match="give --mirror on or auto"):
        load(mirror_branches="weight")


def test_a_bench_shows_what_came_of_the_mirror() -> None:
    """Waiting, hits and passes, of whom something was drafted beside the target for; without it no column of it."""
    words = ["bench", "--threads", "2", "--limit", "1", "--max-tokens", "40", "--drafters", "chain,lookup"]
    shown = call(*words, "--mirror", "on").out
    seconds = shown[shown.index("Prompts read") :].partition("\n\n")[0].splitlines()
    assert seconds[1].split()[-5:] == ["verify", "judge", "wait", "in", "all"]
    [chain] = [line.split() for line in seconds if line.startswith("chain")]
    draft, verify, judge, wait, whole = map(float, chain[2:])
    assert 0 < wait < whole
    assert draft + verify + judge + wait < whole
    beside = shown[shown.index("Drafted beside the model's passes") :].partition("\n\n")[0].splitlines()
    [row] = beside[3:]
    name, hits, looked, _, passes, spent = row.split()
    assert (name, float(spent) > 0) == ("chain", True)
    assert 0 < int(hits) <= int(looked) < int(passes)
    found = {row["drafter"]: row for row in call(*words, "--mirror", "on", "--json").json()["rows"]}
    assert found["chain"]["seconds"]["wait"] > 0
    assert found["chain"]["beside"]["passes"] > 0
    assert found["none"]["beside"] is None is found["lookup"]["beside"]
    alone = call(*words).out
    assert "wait" not in alone
    assert "beside" not in alone


def test_forms_to_paste_show_what_came_of_the_mirror() -> None:
    """Of whom something was drafted beside the target for, and of no others; without it no table and empty columns."""
    words = ["bench", "--threads", "2", "--limit", "1", "--max-tokens", "40", "--drafters", "chain,lookup"]
    beside = [*words, "--mirror", "on"]
    shown = call(*beside, "--format", "md").out
    _, title, table = shown.partition("Drafted beside the model's passes:\n\n")
    assert title
    heads, _, row = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[:3]]
    cells = dict(zip(heads, row, strict=True))
    assert cells["drafter"] == "chain"
    assert 0 < int(cells["hits"]) <= int(cells["of drafts"]) < int(cells["draft passes"])
    assert min(float(cells["ms a token"]), float(cells["ms waited a token"])) > 0
    found = {row["drafter"]: row for row in csv.DictReader(io.StringIO(call(*beside, "--format", "csv").out))}
    told = {name: float(text) for name, text in found["chain"].items() if name.startswith("beside_")}
    assert 0 < told["beside_hits"] <= told["beside_foreseen"] <= told["beside_hits"] + told["beside_misses"]
    assert min(told["beside_hit_seconds"], told["beside_seconds"]) > 0
    assert float(found["chain"]["wait_seconds"]) > 0
    assert {found["lookup"][name] for name in (*told, "wait_seconds")} == {""}
    alone = call(*words, "--format", "md").out
    assert "beside" not in alone
