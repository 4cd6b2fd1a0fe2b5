"""The bench: what it reads, what it computes, what it says."""

from __future__ import annotations

import csv
import gzip
import io
import os
from pathlib import Path

import pytest
from command_line import call, copied_bundle
from storybook import session
from terminal import Terminal, needs_terminal

import paceline
from paceline.bench_measure import CONTROL, PLAIN, Measured, Question, Run, add_up, measure
from paceline.bench_prompts import Task, built_in_tasks, read_tasks, spread
from paceline.bench_report import OVERALL, Difference, Spread, rows
from paceline.bench_tables import tables, verdict
from paceline.plot import draw
from paceline.runtime.request import Sampling


def test_spec_bench_turns_and_categories_are_read(tmp_path: Path) -> None:
    file = tmp_path / "spec.jsonl"
    file.write_text(
        '{"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]}\n'
        '{"question_id": 201, "category": "translation", "turns": ["Translate."]}\n'
    )
    assert read_tasks(file) == [
        Task("81", "mt_bench", ("Write.", "Again.")),
        Task("201", "translation", ("Translate.",)),
    ]


def test_prompts_of_a_text_file_are_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "few.txt"
    file.write_text("One.\n\n  Two.\n")
    assert [t.turns for t in read_tasks(file)] == [("One.",), ("Two.",)]
    assert {t.group for t in read_tasks(file)} == {"few"}


def test_packed_jsonl_with_prompt_is_read(tmp_path: Path) -> None:
    file = tmp_path / "code.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"task_id": "HumanEval/0", "prompt": "def f():"}\n'))
    assert read_tasks(file) == [Task("HumanEval/0", "code", ("def f():",))]


def test_a_line_ends_where_a_file_says_so(tmp_path: Path) -> None:
    """JSON may hold the separators that Unicode counts as ends of lines."""
    file = tmp_path / "asked.jsonl"
    file.write_bytes('{"prompt": "one\u2028two\x85"}\r\n{"prompt": "three"}\r\n'.encode())
    assert [t.turns for t in read_tasks(file)] == [("one\u2028two\x85",), ("three",)]


def test_a_limit_takes_from_every_group_of_a_sorted_file() -> None:
    tasks = [Task(str(i), "abc"[i // 10], ("x",)) for i in range(30)]
    assert [t.group for t in spread(tasks, 3)] == ["a", "b", "c"]
    assert spread(tasks, None) == tasks
    assert spread(tasks, 99) == tasks


def test_built_in_prompts_have_names_of_their_own() -> None:
    names = [t.name for t in built_in_tasks()]
    assert len(set(names)) == len(names)


def run_of(contender: str, task: str, tokens: list[int], seconds: float, **more: object) -> Run:
    fields = {
        "prefill_seconds": 0.0,
        "prompt_tokens": 0,
        "rounds": len(tokens),
        "drafted": 0,
        "accepted": 0,
        "tested": 0,
        "accepted_by_depth": (),
        "tested_by_depth": (),
        "draft_seconds": 0.0,
        "verify_seconds": 0.0,
        "judge_seconds": 0.0,
        **more,
    }
    return Run(contender, Task(task, "g", ("x",)), 0, tuple(tokens), seconds, **fields)  # type: ignore[arg-type]


def test_ratios_are_taken_prompt_by_prompt() -> None:
    runs = [
        run_of(PLAIN, "a", [1] * 10, 1.0),
        run_of(PLAIN, "b", [1] * 10, 2.0),
        run_of(PLAIN, "c", [1] * 10, 1.0),
        run_of("chain", "a", [1] * 10, 0.5),
        run_of("chain", "b", [1] * 10, 2.0),
        run_of("chain", "c", [1] * 10, 0.25, accepted=5, rounds=5, tested=8),
    ]
    overall = {r.contender: r for r in rows(Measured(tuple(runs), ()), ["g"]) if r.group == OVERALL}
    assert overall["chain"].ratio == Spread(2.0, 1.5, 3.0)
    assert overall[PLAIN].ratio == Spread(1.0, 1.0, 1.0)
    assert overall["chain"].tokens_per_second == pytest.approx(30 / 2.75)
    assert overall["chain"].tokens_per_round == pytest.approx((5 + 25) / 25)
    assert overall["chain"].acceptance_rate == pytest.approx(5 / 8)


def test_plain_decoding_and_its_control_come_first() -> None:
    runs = [run_of(c, "a", [1], 1.0) for c in ("tree", CONTROL, "chain", PLAIN)]
    assert [r.contender for r in rows(Measured(tuple(runs), ()), ["g"]) if r.group == OVERALL][:2] == [
        PLAIN,
        CONTROL,
    ]


@pytest.mark.parametrize(
    ("ours", "first", "tokens"),
    [([1, 2, 9, 4], 2, 1), ([1, 2], 2, 2), ([1, 2, 3, 4, 5], 4, 1), ([9, 9, 9, 9], 0, 4)],
)
def test_a_different_answer_is_located_and_counted(ours: list[int], first: int, tokens: int) -> None:
    runs = [run_of(PLAIN, "a", [1, 2, 3, 4], 1.0), run_of("chain", "a", ours, 1.0)]
    row = next(r for r in rows(Measured(tuple(runs), ()), ["g"]) if r.contender == "chain")
    assert row.differences == (Difference("a", 0, first, tokens),)


def test_equal_answers_have_no_difference() -> None:
    runs = [run_of(PLAIN, "a", [1, 2], 1.0), run_of("chain", "a", [1, 2], 1.0)]
    assert all(not r.differences for r in rows(Measured(tuple(runs), ()), ["g"]))


def test_lists_of_different_depth_add_up() -> None:
    assert add_up([[3, 1], [2], [1, 1, 1]]) == (6, 2, 1)
    assert add_up([]) == ()


def test_a_bench_compares_every_drafter_with_plain_decoding(tmp_path: Path) -> None:
    plot = tmp_path / "ratios.svg"
    names = "chain,lookup+recycle"
    found = call(
        "bench", "--json", "--limit", "3", "--max-tokens", "24", "--drafters", names, "--plot", plot
    ).json()
    overall = {row["drafter"]: row for row in found["rows"] if row["group"] == "overall"}
    assert list(overall) == ["none", "none again", "chain", "lookup,recycle"]
    for name, row in overall.items():
        assert row["identical"], name
        assert row["prompts"] == 3
        assert 0 < row["tokens"] <= 72
        assert row["tokens_per_second"] > 0
    assert overall["none"]["tokens_per_round"] == 1.0
    assert overall["chain"]["tokens_per_round"] > 1.0
    assert {row["group"] for row in found["rows"]} == {"one thing", "two things", "three things", "overall"}
    assert found["machine"]["cpu"]
    assert "numpy" in found["machine"]["versions"]
    assert "<svg" in plot.read_text()


def test_a_bench_within_a_budget_compares_what_its_plan_has_room_for() -> None:
    words = ("bench", "--limit", "1", "--max-tokens", "12", "--memory", "2GB", "--json")
    done = call(*words)
    assert done.code == 0, done.err
    assert {row["drafter"] for row in done.json()["rows"]} == {"none", "none again", "auto"}
    named = call(*words, "--drafters", "chain,auto,lookup")
    assert named.code == 0, named.err
    rows = {row["drafter"]: row for row in named.json()["rows"]}
    assert rows["chain"]["tokens_per_round"] > 1
    assert call("bench", "--perplexity", "x", "--memory", "2GB").code == 2


def test_the_tables_of_a_bench_fit_80_columns() -> None:
    done = call(
        "bench", "--limit", "2", "--max-tokens", "12", "--drafters", "chain", "--temp", "0.8", "--seed", "5"
    )
    assert done.code == 0
    assert max(len(line) for line in done.out.splitlines() if "," not in line or "chain" in line) <= 80
    assert "identical" in done.out
    assert "none again" in done.out


def runs_of(seconds: dict[str, float]) -> Measured:
    """Nothing is accepted from `recycle`."""
    accepted = {PLAIN: 0, CONTROL: 0, "recycle": 0}
    return Measured(
        tuple(
            run_of(name, "a", [1] * 10, spent, accepted=accepted.get(name, 5))
            for name, spent in seconds.items()
        ),
        (),
    )


@pytest.mark.parametrize(
    ("seconds", "best", "drafter"),
    [
        ({PLAIN: 1.54, CONTROL: 1.5, "chain": 1.0, "lookup": 2.0}, "chain 1.54x", "chain"),
        ({PLAIN: 2.0, CONTROL: 2.0, "lookup,recycle": 1.0}, "lookup,recycle 2.00x", "lookup,recycle"),
        (
            {PLAIN: 1.0, CONTROL: 0.8, "chain": 0.9},
            "plain decoding; chain has 1.11, plain decoding against itself (none again) 1.25, which a drafter has",
            "none",
        ),
        ({PLAIN: 1.0, CONTROL: 0.8, "chain": 1.1}, "plain decoding, no drafter was faster", "none"),
        ({PLAIN: 1.0, CONTROL: 1.0, "recycle": 0.5}, "plain decoding, no drafter was faster", "none"),
        ({PLAIN: 1.0, CONTROL: 1.0, "recycle": 0.5, "chain": 0.8}, "chain 1.25x", "chain"),
    ],
)
def test_a_bench_ends_with_the_winner_and_the_flag_that_selects_it(
    seconds: dict[str, float], best: str, drafter: str
) -> None:
    last = verdict(rows(runs_of(seconds), ["g"]))
    assert last.startswith(f"best: {best}")
    assert last.endswith(f"use --drafter {drafter}")


def test_long_names_go_on_below_and_the_table_fits() -> None:
    name = "chain,tree,lookup,suffix,recycle"
    shown = tables(rows(runs_of({PLAIN: 1.0, CONTROL: 1.0, name: 123456.0}), ["g"]))
    assert max(map(len, shown)) <= 80
    assert name in "".join(line.split("  ")[0].strip() for line in shown)


def test_what_was_read_of_prompts_is_told_as_speed() -> None:
    runs = (
        run_of(PLAIN, "a", [1], 1.0, prefill_seconds=2.0, prompt_tokens=30),
        run_of(PLAIN, "b", [1], 1.0, prefill_seconds=1.0, prompt_tokens=60),
    )
    assert rows(Measured(runs, ()), ["g"])[-1].prompt_tokens_per_second == pytest.approx(30)


def test_ctrl_c_keeps_the_prompts_that_everybody_has_answered() -> None:
    asked: list[str] = []

    def report(done: int, whole: int, text: str) -> None:
        asked.append(text)
        assert whole == 15
        if done == 2:
            raise KeyboardInterrupt

    question = Question(4, Sampling(), "coupled", 0)
    measured = measure(lambda learns: paceline.load(), built_in_tasks(), ["lookup"], question, 1, report)
    assert measured.interrupted
    assert len(asked) == 2
    assert [r.contender for r in measured.runs].count("lookup") == 2
    assert len({r.task.name for r in measured.runs}) == 2


@needs_terminal
def test_an_interrupted_bench_shows_what_it_has_and_says_so() -> None:
    with Terminal("bench", "--drafters", "lookup", "--max-tokens", "8", "--repeats", "1000") as screen:
        screen.until("prompt 2 of 15")
        screen.type("\x03")
        shown = screen.rest()
        assert "stopped by Ctrl-C after" in shown
        assert "of 15000 prompts" in shown
        assert "Overall" in shown
        assert "best: " in shown
        assert screen.process.wait(30) == 130


def test_forms_to_paste_have_every_drafter() -> None:
    usual = ("bench", "--limit", "2", "--max-tokens", "8", "--drafters", "lookup")
    found = list(csv.DictReader(io.StringIO(call(*usual, "--format", "csv").out)))
    assert [r["drafter"] for r in found if r["group"] == "overall"] == ["none", "none again", "lookup"]
    assert all(float(r["prompt_tokens_per_second"]) > 0 for r in found)
    shown = call(*usual, "--format", "md").out
    table = [line for line in shown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert [line.split("|")[1].strip() for line in table[2:]] == ["none", "none again", "lookup"]
    assert "best: " in shown.splitlines()[-1]
    assert call(*usual, "--format", "json").json()["rows"]


def test_a_plot_draws_a_single_group_once(tmp_path: Path) -> None:
    file = tmp_path / "ratios.svg"
    found = rows(runs_of({PLAIN: 1.0, CONTROL: 1.0, "chain": 0.5}), ["g"])
    draw(found, "a title", file)
    text = file.read_text()
    assert "<!-- g -->" in text
    assert "<!-- overall -->" not in text
    assert text.count("<!-- 2.00 -->") == 1


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_plot_that_the_disk_cannot_hold_leaves_the_old_one_and_is_named(tmp_path: Path) -> None:
    import resource

    file = tmp_path / "ratios.png"
    found = rows(runs_of({PLAIN: 1.0, CONTROL: 1.0, "chain": 0.5}), ["g"])
    draw(found, "a title", file)
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(OSError, match=str(file)):
            draw(found, "another title", file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_prompts_that_do_not_fit_are_skipped_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("Tell me a story about a cat.\n" + "long " * 300 + "\n")
    arguments = [
        "bench",
        "--json",
        "--prompts",
        str(file),
        "--drafters",
        "lookup",
        "-c",
        "64",
        "--max-tokens",
        "8",
    ]
    found = call(*arguments).json()
    assert [s["prompt"] for s in found["skipped"]] == ["line 2"]
    assert found["rows"][0]["prompts"] == 1


def test_recorded_acceptance_is_shown_by_inspect(tmp_path: Path) -> None:
    folder = copied_bundle(tmp_path)

    def recorded() -> dict[str, float]:
        found: dict[str, float] = call("inspect", "-b", folder, "--json").json()["acceptance"]
        return found

    shipped = recorded()
    done = call(
        "bench", "-b", folder, "--limit", "2", "--max-tokens", "16", "--drafters", "chain", "--record"
    )
    assert done.code == 0, done.err
    now = recorded()
    assert {name for name in now if now[name] != shipped.get(name)} == {"chain"}
    assert call("run", "Tell me a story.", "-b", folder, "--max-tokens", "4").code == 0


def test_perplexity_of_stories_is_below_that_of_noise(tmp_path: Path) -> None:
    story, noise = tmp_path / "story.txt", tmp_path / "noise.txt"
    story.write_text("Once upon a time, there was a little dog. The dog had a red ball. He liked to play.")
    noise.write_text("zq#8 vv xk 91 ;; plo wqe rrt yyu zxcv bnm ,, qwp eor iut yal skd jfh gmz nxb cv")
    found = [call("bench", "--perplexity", f, "--json").json() for f in (story, noise)]
    assert found[0]["perplexity"] < found[1]["perplexity"] / 10
    for told, file in zip(found, (story, noise), strict=True):
        assert told["tokens"] == len(session().text.encode(file.read_text()))


@pytest.mark.parametrize(
    "flags",
    [
        ("--limit", "3"),
        ("--drafters", "chain"),
        ("--record",),
        ("--plot", "x.svg"),
        ("--format", "md"),
        ("--temp", "1"),
        ("--adapt", "on"),
        ("--drafter-bundle", "x"),
    ],
)
def test_what_a_perplexity_would_not_follow_is_refused(flags: tuple[str, ...], tmp_path: Path) -> None:
    (text := tmp_path / "text.txt").write_text("Once upon a time there was a dog.")
    done = call("bench", "--perplexity", text, *flags)
    assert (done.code, done.out) == (2, "")
    assert f"Invalid value for {flags[0]}: nobody is asked while a text is measured" in done.err
