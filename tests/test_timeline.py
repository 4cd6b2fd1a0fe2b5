"""When what ran: spans of an answer, and the files they are drawn into."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from command_line import call

from paceline import load, trace
from paceline.runtime.answer import Answer
from paceline.runtime.timeline import LOOP, TARGET, Timeline
from paceline.trace import events, save

PROMPT = "Once upon a time, a dog"


@pytest.fixture(scope="module")
def recorded() -> tuple[Answer, Timeline]:
    with load(drafter="chain", mirror="on", threads=2) as session:
        answer = session.generate(PROMPT, max_tokens=60)
        timeline = answer.record()
        answer.read()
    return answer, timeline


def lasts(timeline: Timeline, *names: str) -> float:
    return sum(span.end - span.begin for span in timeline.spans if span.name in names)


def count(timeline: Timeline, name: str) -> int:
    return sum(span.name == name for span in timeline.spans)


def test_spans_add_up_to_the_seconds_of_the_statistics(recorded: tuple[Answer, Timeline]) -> None:
    answer, timeline = recorded
    seconds = answer.stats.seconds
    assert lasts(timeline, "verify", "keep") == pytest.approx(seconds["verify"], rel=1e-6)
    assert lasts(timeline, "judge") == pytest.approx(seconds["judge"], rel=1e-6)
    assert lasts(timeline, "wait") == pytest.approx(seconds["wait"], rel=1e-6)
    assert lasts(timeline, "draft", "learn") <= seconds["draft"]  # which counts the prompt, too
    assert lasts(timeline, "prompt") == pytest.approx(seconds["prefill"], rel=1e-3)
    assert count(timeline, "verify") == answer.stats.rounds


def test_what_came_of_the_work_beside_is_marked_as_it_is_counted(recorded: tuple[Answer, Timeline]) -> None:
    answer, timeline = recorded
    tally = answer.stats.beside
    assert tally is not None
    assert (count(timeline, "hit"), count(timeline, "miss")) == (tally.hits, tally.misses)
    assert count(timeline, "pass") == tally.passes
    assert lasts(timeline, "work") == pytest.approx(tally.seconds, rel=1e-6)
    accepted = sum(span.about["accepted"] for span in timeline.spans if span.name == "judge")
    assert accepted == answer.stats.accepted


def test_a_thread_does_one_thing_at_a_time_and_two_do_two(recorded: tuple[Answer, Timeline]) -> None:
    _, timeline = recorded
    own = [span for span in timeline.spans if span.track in (LOOP, TARGET) and span.end > span.begin]
    of_loop = sorted((span.begin, span.end) for span in own)
    assert all(before[1] <= after[0] for before, after in pairwise(of_loop))
    works = [span for span in timeline.spans if span.name == "work"]
    passes = [span for span in timeline.spans if span.name == "verify"]
    assert any(w.begin < p.end and p.begin < w.end for w in works for p in passes)


def test_an_answer_that_nobody_records_has_no_timeline() -> None:
    with load(drafter="none") as session:
        assert session.generate(PROMPT, max_tokens=4).read().timeline is None


def test_the_trace_event_format_has_a_process_for_each_drafter(recorded: tuple[Answer, Timeline]) -> None:
    _, timeline = recorded
    found = events({"chain": timeline, "again": timeline})["traceEvents"]
    assert isinstance(found, list)
    names = [e["args"]["name"] for e in found if e["name"] == "process_name"]
    assert names == ["chain", "again"]
    mine = [e for e in found if e["pid"] == 1 and e["ph"] != "M"]
    assert len(mine) == len(timeline.spans)
    assert min(e["ts"] for e in mine) == 0
    whole = [e for e in mine if e["ph"] == "X" and e["name"] == "verify"]
    assert sum(e["dur"] for e in whole) == pytest.approx(1e6 * lasts(timeline, "verify"), rel=0.01)
    assert {e["ph"] for e in mine if e["name"] in ("hit", "miss")} == {"i"}


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html", ".json"])
def test_files_are_what_their_names_say(
    suffix: str, recorded: tuple[Answer, Timeline], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / f"trace{suffix}"
    save({"chain": recorded[1], "<b>": Timeline()}, "a title\nsecond line", file)
    raw = file.read_bytes()
    begins = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!doctype html>", ".json": b"{"}
    assert raw.startswith(begins[suffix])
    if suffix == ".html":
        assert b"<script" not in raw
        assert b"<td>&lt;b&gt;</td>" in raw


def test_a_picture_has_one_legend_and_one_axis_of_numbers(
    recorded: tuple[Answer, Timeline], tmp_path: Path
) -> None:
    """However many drafters it shows. Text of a vector picture stands beside its outlines, as a comment."""
    pytest.importorskip("matplotlib")
    file = tmp_path / "trace.svg"
    save({"chain": recorded[1], "again": recorded[1]}, "a title", file)
    drawn = file.read_text()
    for text in ("verify", "keep", "draft", "judge", "learn", "work", "pass", "hit", "milliseconds"):
        assert drawn.count(f"<!-- {text} -->") == 1, text
    assert drawn.count("<!-- target -->") == 2


def test_what_takes_no_time_to_speak_of_is_seen(tmp_path: Path) -> None:
    """Bars have an edge of their own colour, unlike that of any other."""
    pytest.importorskip("matplotlib")
    timeline, file = Timeline(), tmp_path / "trace.svg"
    timeline.add(TARGET, "verify", 0.0, 1.0, rows=1)
    timeline.add(TARGET, "keep", 1.0, 1.0 + 1e-7, rows=1)
    timeline.add(LOOP, "learn", 1.0, 1.0 + 1e-7)
    save({"chain": timeline}, "a title", file)
    drawn = file.read_text()
    colours = {trace._COLOURS[name] for name in ("keep", "learn", "draft", "verify", "judge")}
    assert len(colours) == 5
    for name in ("keep", "learn"):
        assert re.search(rf"stroke: {trace._COLOURS[name]}; stroke-width: 0\.5", drawn), name


def test_a_page_says_what_each_name_means(recorded: tuple[Answer, Timeline], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "trace.html"
    save({"chain": recorded[1]}, "a title", file)
    page = file.read_text()
    names = {span.name for span in recorded[1].spans} | {span.track for span in recorded[1].spans}
    for name in names:
        assert len(re.findall(rf"<dt>(<span[^>]*>.</span> )?{name}<dd>[a-z].{{20,}}?<", page)) == 1, name
    assert page.count("<dt>") == len(names)


def test_the_title_names_the_prompt_that_was_traced(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "trace.html"
    words = ("bench", "--limit", "2", "--max-tokens", "4", "--drafters", "lookup", "--trace", str(file))
    assert call(*words).code == 0
    assert re.search(
        r"<p>storyteller \(16-bit\), the prompt &#x27;[a-z ]+ \d&#x27; \(built in\)", file.read_text()
    )


def test_bench_writes_the_trace_of_every_drafter(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    done = call("bench", "--limit", "1", "--max-tokens", "12", "--drafters", "chain", "--trace", str(file))
    assert done.code == 0, done.err
    found = json.loads(file.read_text())["traceEvents"]
    names = [e["args"]["name"] for e in found if e["name"] == "process_name"]
    assert sorted(names) == ["chain", "none", "none again"]


@pytest.mark.parametrize(
    ("name", "says"),
    [("trace.txt", "must end in .html, .png, .svg or .json"), ("none/trace.json", "there is no folder")],
)
def test_a_trace_that_cannot_be_written_is_refused_before_anything_runs(
    name: str, says: str, tmp_path: Path
) -> None:
    done = call("bench", "--trace", str(tmp_path / name))
    assert done.code != 0
    assert says in done.err
