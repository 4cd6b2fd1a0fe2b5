"""What one types first: bundles without -b, short flags, statistics in order, words behind a wrong one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import BUNDLE, call
from terminal import Terminal, needs_terminal
from test_cli_limits import with_template

import paceline
from paceline.runtime.control.trace import Phase, Trace
from paceline.runtime.stats import Statistics
from paceline.stats_text import speed_words, statistics_lines

CAT = "Tell me a story about a cat."


def test_a_bundle_may_be_named_without_a_flag() -> None:
    alone = call("run", CAT, "-n", "6", "--temp", "0").out
    assert call("run", BUNDLE, CAT, "-n", "6", "--temp", "0", "-t", "1").out == alone
    assert call("chat", BUNDLE, "-n", "6", "--temp", "0", stdin=f"{CAT}\n").out == alone
    assert call("inspect", BUNDLE).out == call("inspect", "-b", BUNDLE).out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "Tell", "me", "more"), "put the prompt in quotes"),
        (("run", str(BUNDLE)), "is a bundle: give the prompt behind it"),
        (("run", str(BUNDLE), CAT, "-b", str(BUNDLE)), "named twice"),
        (("chat", str(BUNDLE), "-b", str(BUNDLE)), "named twice"),
        (("run", CAT, "--template-value", "effort"), "is not NAME=VALUE"),
        (("run", CAT, "--raw", "--think"), "leave out --raw"),
    ],
)
def test_wrong_words_are_one_line(words: tuple[str, ...], told: str) -> None:
    done = call(*words)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert told in done.err


def test_version_and_help_are_words_too() -> None:
    assert call("version").out == call("-V").out == call("--version").out
    for command in ("run", "chat", "pull", "list", "rm", "bench", "plan", "inspect", "devices", "export"):
        shown = call("help", command).out
        assert shown == call(command, "--help").out
        assert f"paceline {command}" in shown.partition("Examples:")[2]
    assert call("help", "nothing").code == 2


@pytest.mark.skipif(os.name == "nt", reason="bash")
def test_a_shell_can_complete() -> None:
    asked = {"_PACELINE_COMPLETE": "complete_bash", "COMP_WORDS": "paceline ins", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "paceline.main"]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True)
    assert done.stdout.split() == ["inspect"]


def test_statistics_begin_with_what_a_user_wants() -> None:
    usual = ("run", CAT, "-n", "24", "--temp", "0", "--drafter", "chain")
    brief, full = call(*usual, "--stats").err, call(*usual, "--stats", "full").err
    assert len(call(*usual, "--stats=full").err.splitlines()) == len(full.splitlines())
    first, *rest = brief.splitlines()
    assert first.startswith("24 tokens, ")
    assert "tokens/s, about " in first
    assert first.endswith("x plain decoding")
    assert "first token after" in rest[0]
    assert "prompt of" in rest[0]
    assert len(brief.splitlines()) <= 6
    for detail in ("load", "verify", "accepted by depth", "chosen by tokens"):
        assert detail not in brief
        assert detail in full
    assert max(map(len, full.splitlines())) <= 80


def test_a_comparison_with_plain_decoding_is_made_only_where_its_cost_is_known() -> None:
    stats = Statistics(generated_tokens=10)
    assert "plain" not in speed_words(stats)
    stats.control = Trace()
    assert stats.times_plain is None
    for tokens, cost in ((3.0, 1.5), (1.0, 1.0)):
        stats.control.add(Phase("chain", 0, 9, 10, 4.0, 4.0, tokens, cost, False, 1.0, ""))
    assert stats.times_plain == pytest.approx(40 / 25)
    assert "about 1.6x plain decoding" in speed_words(stats)
    assert call("run", CAT, "-n", "4", "--drafter", "none", "--stats").err.count("plain decoding") == 1


def test_shares_of_drafters_are_told() -> None:
    stats = Statistics(generated_tokens=10, tested=4, accepted=2, rounds=8, control=Trace())
    assert stats.control is not None
    stats.control.tokens |= {"none": 20, "chain": 79, "lookup": 1}
    assert any(line.startswith("drafter chain 79%, none 20%: ") for line in statistics_lines(stats))


def test_json_names_the_drafter_that_was_asked_for() -> None:
    found = call("run", CAT, "-n", "40", "--json").json()
    assert found["drafter"] == "auto"
    assert found["stats"]["first_token_seconds"] > 0
    assert found["stats"]["prompt_tokens_per_second"] > 0
    assert found["stats"]["times_plain"] > 0


TOOLS = (
    "{% if tools %}<|user|>{{ tools[0].name }} {{ effort }}<|end|>{% endif %}{{ messages[-1].content }}"
    "{% if enable_thinking %}<|user|>think<|end|>{% endif %}<|assistant|>"
)


def test_tools_thinking_and_values_reach_the_template(tmp_path: Path) -> None:
    bundle, tools = with_template(tmp_path, TOOLS), tmp_path / "tools.json"
    tools.write_text(json.dumps([{"name": "weather"}]))

    def tokens(*flags: str | Path) -> int:
        found = call("run", "Hi", "-b", bundle, "-n", "1", "--json", *flags).json()
        return int(found["prompt_tokens"])

    plain = tokens()
    assert tokens("--think") > plain
    assert tokens("--no-think") == plain
    with_tools = tokens("--tools", tools)
    assert with_tools > plain
    assert tokens("--tools", tools, "--template-value", "effort=a great deal") > with_tools
    chatted = call(
        "chat",
        "-b",
        bundle,
        "-n",
        "1",
        "--tools",
        tools,
        "--think",
        stdin="Hi\n/stats\n/set think off\nHi\n/stats\n",
    )
    counts = [int(part.split()[0]) for part in chatted.out.split("prompt of ")[1:]]
    assert counts == [tokens("--tools", tools, "--think"), with_tools]


@pytest.mark.parametrize("content", ["", "{", "[]", "[1]", '"text"', "\x00"])
def test_a_file_without_tools_is_one_line(content: str, tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text(content)
    for words in (("run", "Hi"), ("chat",)):
        done = call(*words, "--tools", file)
        assert done.code == 1
        assert done.err.count("\n") == 1
        assert "tools.json" in done.err


def test_a_wrong_word_in_a_chat_is_guessed_at() -> None:
    done = call("chat", "-n", "2", stdin="/hel\n/set tmp 0.5\n/stats all\n/zzzzzz\n")
    first, second, third, fourth = done.err.splitlines()
    assert "did you mean /help?" in first
    assert "did you mean temp?" in second
    assert "/stats full" in third
    assert "did you mean" not in fourth


def test_inspect_tells_how_a_bundle_answers() -> None:
    shown = call("inspect").out
    for words in ("choosing   greedy", "ends at    <|endoftext|>", "bits a weight", "chat       template: "):
        assert words in shown
    assert "model.onnx.data" not in shown
    assert "model.onnx.data" in call("inspect", "--files").out


def test_a_budget_without_a_unit_is_asked_about() -> None:
    done = call("plan", "--memory", "115")
    assert done.code == 1
    assert "did you mean 115MB?" in done.err
    offered = re.findall(r"\b[0-9]+MB", call("plan", "--memory", "60MB").err)
    assert offered
    assert len(offered) == len(set(offered))


def test_what_a_prediction_rests_on_is_said_of_the_drafter_that_is_planned(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLE, bundle, copy_function=os.link)
    made = json.loads((bundle / "manifest.json").read_text())
    del made["acceptance"]["recycle"]
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").write_text(json.dumps(made))
    assert "usual acceptance" in " ".join(call("plan", "-b", bundle, "--drafter", "recycle").out.split())
    assert "usual acceptance" not in " ".join(call("plan", "-b", bundle, "--drafter", "chain").out.split())


@needs_terminal
def test_an_answer_on_a_terminal_is_broken_between_words() -> None:
    words = call("run", CAT, "-n", "60", "--temp", "0").out.split()
    with Terminal("run", CAT, "-n", "60", "--temp", "0", columns=40) as screen:
        lines = screen.rest().replace("\r", "").split("\n")
    assert max(map(len, lines)) < 40
    assert [word for line in lines for word in line.split()] == words


def test_what_a_template_never_names_is_told_and_what_it_names_is_not(tmp_path: Path) -> None:
    bundle, tools = with_template(tmp_path, TOOLS), tmp_path / "tools.json"
    tools.write_text(json.dumps([{"name": "weather"}]))
    flags = ("-n", "1", "--tools", tools, "--think", "--template-value", "effort=1")
    assert call("run", "Hi", "-b", bundle, *flags).err == ""
    assert call("chat", "-b", bundle, *flags, stdin="Hi\n").err == ""
    told = [call("run", "Hi", *flags).err, call("chat", *flags, stdin="Hi\nHi\n").err]
    for said in told:
        assert said.count("\n") == 3
        for name in ("tools", "enable_thinking", "effort"):
            assert f"has no effect: the chat template of storyteller never names {name!r}" in said
    assert call("run", "Hi", "-n", "1").err == ""
    assert "enable_thinking" in call("chat", "-n", "1", stdin="/set think off\nHi\n").err
    with paceline.load() as session:
        assert session.unread(["messages", "tools", "message"]) == ["tools"]


def test_a_store_that_nobody_keeps_is_told(tmp_path: Path) -> None:
    store = tmp_path / "store"
    told = call("run", "Hi", "-n", "1", "--suffix-store", store).err
    assert (
        told
        == "paceline: --suffix-store is not used: only the drafter suffix keeps one, and this one is auto\n"
    )
    assert not store.exists()
    with pytest.warns(UserWarning, match="suffix_store is not used") as warned:
        paceline.load(suffix_store=store, drafter="chain,lookup").close()
    assert warned[0].filename == __file__
    assert call("run", "Hi", "-n", "1", "--suffix-store", store, "--drafter", "lookup,suffix").err == ""
    assert store.exists()


def test_plan_and_run_agree_about_the_least() -> None:
    """Each in a process of its own, since what a process holds is part of it."""

    def least(*words: str) -> float:
        command = [sys.executable, "-m", "paceline", *words, "--memory", "1MB"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(r"needs ([0-9.]+) MB at least", done.stderr)
        assert found, done.stderr
        return float(found[1])

    assert least("plan") == pytest.approx(least("run", "Hi"), abs=1)


def test_the_help_names_the_limit_of_threads_that_is_kept() -> None:
    said = " ".join(call("run", "--help").out.replace("│", " ").split())
    assert "Threads of the model, at most 4 a core." in said
    assert "256" not in said
    most = 4 * (os.cpu_count() or 1)
    assert f"use {most} or fewer" in call("run", "-t", str(most + 1), "Hi").err
    with pytest.raises(ValueError, match=f"use {most} or fewer"):
        paceline.load(threads=most + 1)
