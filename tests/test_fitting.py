"""Which contexts and caches fit a budget: what `plan` says of them is what loading does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import BUNDLE, call

from paceline.fit_table import fit_dicts, fit_lines
from paceline.memory.budget import Budget
from paceline.memory.plan import SLACK, BudgetError
from paceline.runtime.budget.fitting import Fit, fits
from paceline.runtime.budget.planning import least_bytes, make_plan
from paceline.runtime.drafters.names import Name, parse
from paceline.runtime.options import Options
from paceline.runtime.placement import settle

PROCESS = 80_000_000
FORMS = ("fp32", "fp16", "int8")


def fitted(drafter: str, budget: int | None, **choices: Any) -> tuple[list[Fit], Any, Any, Name]:
    bundle, settings = settle(Options(BUNDLE, **choices))
    name = parse(drafter, bundle.manifest.drafters)
    kept = None if budget is None else Budget(budget)
    return fits(bundle, settings, name, kept, PROCESS), bundle, settings, name


@pytest.mark.parametrize("drafter", ["auto", "tree", "none"])
@pytest.mark.parametrize("more", [0, 1_500_000, 20_000_000])
def test_what_is_said_to_fit_is_what_the_planner_plans(drafter: str, more: int) -> None:
    _, bundle, settings, name = fitted(drafter, None)
    smallest = least_bytes(bundle, replace(settings, context=128, cache="int8"), name, PROCESS)
    budget = smallest + SLACK + more
    found, *_ = fitted(drafter, budget)
    assert [fit.cache for fit in found] == list(FORMS)
    assert found[-1].rungs[0].plan is not None
    for fit in found:
        chosen = replace(settings, cache=fit.cache)
        assert [rung.context for rung in fit.rungs] == [128, 256, 512]
        for rung in fit.rungs:
            there = replace(chosen, context=rung.context)
            assert rung.least == make_plan(bundle, there, name, None, PROCESS).least
            assert (rung.plan is None) == (rung.least + SLACK > budget)
            if rung.plan is None:
                with pytest.raises(BudgetError):
                    make_plan(bundle, there, name, Budget(budget - SLACK), PROCESS)
            else:
                assert rung.plan == make_plan(bundle, there, name, Budget(budget - SLACK), PROCESS)
                assert rung.plan.total + SLACK <= budget
        if fit.largest is not None:
            assert least_bytes(bundle, replace(chosen, context=fit.largest), name, PROCESS) + SLACK <= budget
        if fit.largest != 512:
            beyond = replace(chosen, context=(fit.largest or 1) + 1)
            assert least_bytes(bundle, beyond, name, PROCESS) + SLACK > budget
    assert more < 20_000_000 or {fit.largest for fit in found} == {512}


@pytest.mark.parametrize("drafter", ["auto", "none", "recycle", "chain,suffix"])
def test_a_refusal_names_the_largest_context_of_the_table(drafter: str) -> None:
    _, bundle, settings, name = fitted(drafter, None)
    asked = replace(settings, cache="fp32")
    budget = least_bytes(bundle, replace(asked, context=307), name, PROCESS) + SLACK
    found, *_ = fitted(drafter, budget)
    with pytest.raises(BudgetError) as refused:
        make_plan(bundle, asked, name, Budget(budget), PROCESS)
    assert found[0].largest is not None
    assert 307 <= found[0].largest < 330
    assert re.search(r" context (\d+)(?: instead of 512 would fit)?$", str(refused.value))[1] == str(
        found[0].largest
    )


def test_more_context_never_takes_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "PACELINE_CACHE", str(tmp_path)
    )  # by estimates: what was measured holds for one context
    _, bundle, settings, _ = fitted("auto", None)
    for drafter in ("auto", "chain,lookup", "suffix", "none"):
        name = parse(drafter, bundle.manifest.drafters)
        sizes = [least_bytes(bundle, replace(settings, context=c), name, PROCESS) for c in range(2, 513, 5)]
        assert sizes == sorted(sizes)


def test_without_a_budget_all_of_it_fits_at_full_size() -> None:
    found, bundle, settings, name = fitted("auto", None, context=300)
    for fit in found:
        assert fit.largest == 512
        assert [rung.context for rung in fit.rungs] == [128, 256, 300, 512]
        for rung in fit.rungs:
            assert rung.plan == make_plan(
                bundle, replace(settings, cache=fit.cache, context=rung.context), name, None, PROCESS
            )


TABLE = """
import json, sys
import paceline.runtime.loading  # which a run has in its memory too
from dataclasses import replace
from paceline import load
from paceline.memory.budget import Budget, resident
from paceline.memory.plan import SLACK
from paceline.runtime.budget.fitting import fits
from paceline.runtime.budget.planning import least_bytes
from paceline.runtime.budget.pressure import give_back
from paceline.runtime.drafters.names import parse
from paceline.runtime.placement import settle
from paceline.runtime.options import Options
from paceline.runtime.text.text import Text

folder, cache = sys.argv[1:]
bundle, settings = settle(Options(folder, cache=cache))
text, name = Text.load(bundle.folder), parse("auto", bundle.manifest.drafters)
give_back()
process = resident()
def least(context):
    return least_bytes(bundle, replace(settings, context=context), name, process)
budget = least(128) + SLACK
largest = {f.cache: f.largest for f in fits(bundle, settings, name, Budget(budget), process)}[cache]
beyond = next(c for c in range(largest, 512) if least(c) >= budget + SLACK)
print(json.dumps({"budget": budget, "largest": largest, "beyond": beyond}))
"""
OPEN = """
import json, sys
from paceline import BudgetError, load
folder, cache, memory, context = sys.argv[1:]
try:
    session = load(folder, memory=int(memory), memory_scope="process", cache=cache, context=int(context))
except BudgetError as error:
    print(json.dumps({"refused": str(error)}))
    sys.exit()
print(json.dumps({"context": session.context, "planned": session.plan.total}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("cache", FORMS)
def test_the_largest_context_opens_under_that_budget_and_a_larger_one_is_refused(
    cache: str, tmp_path: Path
) -> None:
    """In processes of their own, since what a process holds is part of it."""

    def told(script: str, *words: object) -> dict[str, Any]:
        command = [sys.executable, "-c", script, str(BUNDLE), cache, *map(str, words)]
        environment = {**os.environ, "PACELINE_CACHE": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    estimated = told(TABLE)  # before anything was measured on this device
    assert told(OPEN, estimated["budget"], estimated["largest"])["context"] == estimated["largest"]
    told(OPEN, 10**9, 512)  # measures all of it
    known = told(TABLE)
    assert known["largest"] >= 128
    opened = told(OPEN, known["budget"], known["largest"])
    assert opened["context"] == known["largest"]
    assert opened["planned"] <= known["budget"]
    assert "cannot hold this" in told(OPEN, known["budget"], known["beyond"])["refused"]


def rows_of(table: str) -> dict[str, list[str]]:
    """The cells of the table by the first words of their rows."""
    rows = re.findall(r"^ {2} *(\d+|largest that fits) (.*)$", table.partition(" for each context")[2], re.M)
    return {head: re.findall(r"[\d.]+(?: [a-z]+)?|none", cells) for head, cells in rows}


def test_the_table_says_what_the_json_says() -> None:
    _, bundle, settings, name = fitted("auto", None)
    words = set()
    for more in range(0, 2_000_000, 200_000):
        budget = least_bytes(bundle, replace(settings, context=128), name, PROCESS) + more
        found, *_ = fitted("auto", budget)
        rows = rows_of("\n".join(fit_lines(found, budget, drafting=True)))
        assert list(rows) == ["128", "256", "512", "largest that fits"]
        for column, kept in enumerate(fit_dicts(found)):
            assert rows["largest that fits"][column] == str(kept["largest_context"] or "none")
            for at in kept["contexts"]:
                size, word = rows[str(at["context"])][column].split()
                expected = at["planned_bytes"] if at["fits"] else at["least_bytes"]
                assert 0 <= float(size) - expected / 1e6 < 0.1001
                assert word == ("no" if not at["fits"] else "fits" if at["drafters"] else "plain")
                words.add(word)
    assert words == {"fits", "plain", "no"}


def amid() -> int:
    """Bytes between what int8 needs at 128 tokens and fp32 at 512, far from both: this process grows as it tests."""
    call(
        "plan", "-c", "140", "--cache", "int8", "--memory", "1GB"
    )  # what a plan with a budget loads is there then
    forms = call("plan", "--json").json()["caches"]
    return int(forms[2]["contexts"][0]["least_bytes"] + forms[0]["contexts"][2]["least_bytes"]) // 2


def test_plan_prints_the_table_in_80_columns() -> None:
    memory = amid()
    shown = call("plan", "-c", "140", "--cache", "int8", "--memory", str(memory)).out
    assert max(map(len, shown.splitlines())) <= 80
    assert f"within {-(-memory // 10**5) / 10:.1f} MB with 0.5 to spare" in shown
    rows = rows_of(shown)
    assert list(rows) == ["128", "140", "256", "512", "largest that fits"]
    assert rows["128"][2].split()[1] in ("fits", "plain")
    assert rows["512"][0].split()[1] == "no"
    assert int(rows["largest that fits"][2]) >= 128
    assert "no: needs so much at least" in shown


def test_without_a_budget_the_table_has_sizes_alone() -> None:
    found, *_ = fitted("auto", None)
    rows = rows_of("\n".join(fit_lines(found, None, drafting=True)))
    assert list(rows) == ["128", "256", "512"]
    for column, kept in enumerate(fit_dicts(found)):
        for at in kept["contexts"]:
            assert 0 <= float(rows[str(at["context"])][column]) - at["planned_bytes"] / 1e6 < 0.1001
    shown = call("plan", "--json").json()
    assert shown["planned_bytes"] == shown["caches"][1]["contexts"][-1]["planned_bytes"]
    assert list(rows_of(call("plan").out)) == list(rows)


def test_plain_decoding_that_was_asked_for_fits_like_any_other() -> None:
    shown = call("plan", "--drafter", "none", "--memory", "2GB").out
    assert "plain:" not in shown
    assert rows_of(shown)["512"][0].endswith(" fits")


def test_what_was_asked_is_refused_but_what_would_fit_is_shown() -> None:
    memory = str(amid())
    done = call("plan", "--cache", "fp32", "--memory", memory)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "cannot hold this: a context of 512" in done.err
    rows = rows_of(done.out)
    assert rows["512"][0].endswith(" no")
    assert int(rows["largest that fits"][2]) >= 128
    failed = call("plan", "--cache", "fp32", "--json", "--memory", memory)
    assert failed.code == 1
    found = json.loads(failed.out)
    assert found["planned_bytes"] is None
    assert found["budget_bytes"] == int(memory)
    assert [form["cache"] for form in found["caches"]] == list(FORMS)
    nothing = call("plan", "--json", "--memory", "40MB")
    assert (nothing.code, nothing.out) == (1, "")
    assert re.search(r"give it \d+MB, or \d+MB with context 128$", nothing.err.strip())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--memory", "lots"], "900MB"),
        (["--memory", "1GB", "--cache", "int4"], "int4"),
        (["--memory", "1GB", "-c", "1"], "2"),
        (["--memory", "1GB", "--drafter", "chan"], "chain"),
    ],
)
def test_bad_input_shows_no_table(words: list[str], says: str) -> None:
    done = call("plan", *words)
    assert done.code in (1, 2)
    assert done.out == ""
    assert says in done.err


def test_a_bundle_with_one_form_of_cache_has_one_column(folder: Path) -> None:
    for file in folder.rglob("model.*.onnx"):
        file.unlink()
    path = folder / "manifest.json"
    made = json.loads(path.read_text())
    made["files"] = {name: about for name, about in made["files"].items() if (folder / name).is_file()}
    for part in (made["target"], *made["drafters"].values()):
        part["caches"] = {}
    path.write_text(json.dumps(made))
    assert [form["cache"] for form in call("plan", "-b", folder, "--json").json()["caches"]] == ["fp32"]
    assert len(rows_of(call("plan", "-b", folder, "--memory", "2GB").out)["512"]) == 1
