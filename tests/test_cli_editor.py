"""Typing in a chat: several lines, pasted ones, what was typed before, Tab."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import call
from terminal import Terminal, needs_terminal

from paceline.chat_completion import complete
from paceline.chat_history import LONGEST, MOST, InputHistory
from paceline.chat_input import LineReader, is_open, unquoted

PASTED = "\x1b[200~{}\x1b[201~"
SHORT = ("chat", "--max-tokens", "3", "--temp", "0")


def in_cache(folder: Path) -> dict[str, str]:
    return {"PACELINE_CACHE": str(folder)}


@needs_terminal
def test_pasted_lines_are_one_message_that_is_sent_once(tmp_path: Path) -> None:
    with Terminal(*SHORT, **in_cache(tmp_path)) as screen:
        screen.until(">>> ")
        screen.type(PASTED.format("Tell me\nof a cat\nand a dog."))
        assert "of a cat" in screen.until("and a dog.")
        screen.type("\r")
        screen.until("3 tokens, ")
        screen.until(">>> ")
        screen.type("/history\r")
        screen.until("you: Tell me\r\nof a cat\r\nand a dog.\r\nmodel: ")
        screen.until(">>> ")
        screen.type("/exit\r")
        assert screen.process.wait(30) == 0
        assert screen.raw.count("tokens/s") == 1


@needs_terminal
def test_what_is_pasted_into_an_answer_waits_and_stays_one_message(tmp_path: Path) -> None:
    endless = ("--ban", "0", "--ban", "3", "--temp", "0", "-c", "400")
    with Terminal("chat", *endless, **in_cache(tmp_path)) as screen:
        screen.until(">>> ")
        screen.type("Tell me of a cat.\r")
        screen.until("\n")
        screen.until(" ")
        screen.type(PASTED.format("of a gnu\nand an emu.") + "\r")
        answer = screen.until("tokens/s")
        assert "gnu" not in answer
        screen.until(">>> ")
        assert "of a gnu" in screen.until("and an emu.")
        screen.until("tokens/s")
        screen.until(">>> ")
        screen.type("/history\r")
        screen.until("you: of a gnu\r\nand an emu.\r\nmodel: ")


@needs_terminal
def test_a_message_may_have_several_lines(tmp_path: Path) -> None:
    with Terminal(*SHORT, **in_cache(tmp_path)) as screen:
        for typed in ('"""first\rsecond"""\r', "first\x1b\rsecond\r", "first\\\rsecond\r"):
            screen.until(">>> ")
            screen.type(typed)
            screen.until("3 tokens, ")
            screen.until(">>> ")
            screen.type("/history\r")
            screen.until("you: first\r\nsecond\r\nmodel: ")
            screen.until(">>> ")
            screen.type("/clear\r")


@needs_terminal
def test_what_was_typed_comes_back_in_the_next_chat(tmp_path: Path) -> None:
    with Terminal(*SHORT, **in_cache(tmp_path)) as screen:
        screen.until(">>> ")
        screen.type("Tell me of a heron.\r")
        screen.until("3 tokens, ")
        screen.until(">>> ")
        screen.type("\x04")
        assert screen.process.wait(30) == 0
    kept = tmp_path / "chat_history"
    assert kept.read_text() == '"Tell me of a heron."\n'
    assert kept.stat().st_mode & 0o777 == 0o600
    with Terminal(*SHORT, **in_cache(tmp_path)) as screen:
        screen.until(">>> ")
        screen.type("\x1b[A")
        screen.until("Tell me of a heron.")
    with Terminal(*SHORT, "--no-history", **in_cache(tmp_path)) as screen:
        screen.until(">>> ")
        screen.type("\x1b[A/set seed 5\r")
        screen.until("seed is now 5")
        assert "heron" not in screen.raw
    assert kept.read_text() == '"Tell me of a heron."\n'


@needs_terminal
def test_tab_completes_and_a_dumb_terminal_gets_no_escapes(tmp_path: Path) -> None:
    with Terminal(*SHORT, **in_cache(tmp_path)) as screen:
        screen.until(">>> ")
        screen.type("/hist\t\r")
        screen.until("nothing was said yet")
        screen.until(">>> ")
        screen.type("/set repe\t1.1\r")
        screen.until("repeat-penalty is now 1.1")
    with Terminal(*SHORT, TERM="dumb", **in_cache(tmp_path)) as screen:
        screen.until(">>> ")
        screen.type('"""Tell me\nof a cat."""\n')
        screen.until("3 tokens, ")
        screen.until(">>> ")
        screen.interrupt("/exit or Ctrl-D leaves")
        screen.until(">>> ")
        screen.type("\x04")
        assert screen.process.wait(30) == 0
        assert "\x1b" not in screen.raw


@needs_terminal
def test_ctrl_c_clears_what_was_typed(tmp_path: Path) -> None:
    with Terminal(*SHORT, **in_cache(tmp_path)) as screen:
        screen.until(">>> ")
        screen.type("half a quest")
        screen.until("half a quest")
        screen.interrupt("/exit or Ctrl-D leaves")
        screen.until(">>> ")
        screen.type("/history\r")
        screen.until("nothing was said yet")


@needs_terminal
def test_colours_can_be_switched_off(tmp_path: Path) -> None:
    colours = ("\x1b[2m", "\x1b[32m", "[36m", "[0;36m", "[38;")
    for flags, environment in ((("--no-color",), {}), ((), {"NO_COLOR": "1"})):
        with Terminal(
            *SHORT, "--show-draft", "--drafter", "chain", *flags, **in_cache(tmp_path), **environment
        ) as screen:
            screen.until(">>> ")
            screen.type("Tell me of a cat.\r")
            screen.until("the target itself")
            screen.until(">>> ")
            assert not [colour for colour in colours if colour in screen.raw]


def read(*lines: str) -> list[str]:
    """The messages in these lines."""
    rest = iter(lines)
    reader = LineReader(lambda prompt: next(rest, None))
    found = []
    while (message := reader.read()) is not None:
        found.append(message)
    return found


def test_lines_of_a_pipe_are_joined_by_blocks_and_backslashes() -> None:
    assert read("one", 'a """ b', '"""two', "", 'three"""', "four\\", "five") == [
        "one", 'a """ b', "two\n\nthree", "four\nfive",
    ]  # fmt: skip
    assert read('"""no end', "of it") == ["no end\nof it"]
    assert read('"""one line"""') == ["one line"]


def test_a_block_is_never_a_command() -> None:
    done = call(*SHORT, stdin='"""/exit\nnow"""\n/history\n')
    assert "you: /exit\nnow\n" in done.out


@pytest.mark.parametrize(
    ("text", "opened", "inside"),
    [('"""a', True, "a"), ('"""a"""', False, "a"), ('a """', False, 'a """'), ('  """\na\n"""', False, "a")],
)
def test_blocks(text: str, opened: bool, inside: str) -> None:
    assert is_open(text) == opened
    assert unquoted(text) == inside


def test_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my talks").mkdir()
    (tmp_path / "my talks" / "one.json").touch()
    (tmp_path / ".hidden").touch()
    commands, settings = ("help", "history", "set", "save"), {"temp": (), "stats": ("on", "off"), "stop": ()}
    assert complete("/h", commands, settings) == (0, ["/help ", "/history "])
    assert complete("/set st", commands, settings) == (5, ["stats ", "stop "])
    assert complete("/set stats o", commands, settings) == (11, ["on", "off"])
    assert complete("/set nothing o", commands, settings) == (13, [])
    assert complete("/save my", commands, settings) == (6, ["my talks/"])
    assert complete("/load my talks/", commands, settings) == (6, ["my talks/one.json"])
    assert complete("/load .h", commands, settings)[1] == [".hidden"]
    assert complete("/load nowhere/", commands, settings)[1] == []
    assert complete("/stats f", commands, settings)[1] == ["full"]


def test_the_history_is_bounded_private_and_survives_damage(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "chat_history"
    kept = InputHistory(file)
    assert kept.load() == []
    kept.add("two\nlines \x1b[2J \udc80")
    kept.add("x" * (LONGEST + 1))
    assert InputHistory(file).load() == ["two\nlines \x1b[2J \udc80"]
    assert file.read_bytes().isascii()
    file.write_text("\n".join([*(json.dumps(str(n)) for n in range(3 * MOST)), "damaged {", "5", '"last"']))
    assert InputHistory(file).load()[-1] == "last"
    assert len(file.read_text().splitlines()) == MOST
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.name == "nt", reason="POSIX links and pipes")
def test_a_history_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    link, pipe, target = tmp_path / "link", tmp_path / "pipe", tmp_path / "target"
    target.write_text("mine")
    link.symlink_to(target)
    os.mkfifo(pipe)
    for path in (link, pipe, tmp_path, target / "below"):
        InputHistory(path).add("text")
        assert InputHistory(path).load() == []
    assert target.read_text() == "mine"


@needs_terminal
def test_an_answer_has_the_width_that_the_window_has_then(tmp_path: Path) -> None:
    with Terminal("chat", "--temp", "0", "-n", "60", COLUMNS="", **in_cache(tmp_path)) as screen:
        for columns in (80, 40, 100):
            screen.until(">>> ")
            screen.resize(columns)
            screen.type("Tell me of a cat.\r")
            screen.until("Once upon")
            lines = ("Once upon" + screen.until("60 tokens, ")).splitlines()[:-1]
            assert columns / 2 < max(map(len, lines)) < columns


@needs_terminal
def test_a_budget_counts_the_editor(tmp_path: Path) -> None:
    plan = [sys.executable, "-m", "paceline", "plan", "--memory", "1GB", "--json"]
    least = json.loads(subprocess.run(plan, capture_output=True, check=True).stdout)["least_bytes"]
    budget = f"{least // 10**6 + 20}MB"
    with Terminal(*SHORT, "--memory", budget, **in_cache(tmp_path)) as screen:
        screen.until(">>> ")
        for _ in range(2):
            screen.type("Tell me of a cat.\r")
            screen.until("3 tokens, ")
    with Terminal(*SHORT, "--memory", f"{least // 10**6 + 1}MB", **in_cache(tmp_path)) as screen:
        assert "cannot hold this" in screen.rest()  # before anything is typed
