"""Closed streams, impatient Ctrl-C, and texts that would steer the terminal."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from command_line import call, copied_bundle
from terminal import Terminal, needs_terminal, shown_by

from paceline.chat_screen import Screen
from paceline.errors import complain
from paceline.exporting import _progress
from paceline.interrupts import first_interrupt_counts, listen_again
from paceline.printable import printable, say_json
from paceline.train_bar import training_bar

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX descriptors and signals")
PACELINE = (sys.executable, "-m", "paceline.main")


def without(descriptor: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with one of its standard streams closed."""
    line = f'exec "$@" {descriptor}{"<" if descriptor == 0 else ">"}&-'
    command = ["sh", "-c", line, "sh", *PACELINE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@posix
@pytest.mark.parametrize(
    ("descriptor", "arguments", "code", "words"),
    [
        (1, ("run", "hi", "--max-tokens", "3"), 1, "stdout cannot be written"),
        (1, ("devices",), 1, "stdout cannot be written"),
        (1, ("chat",), 0, ""),
        (2, ("run", "hi", "--max-tokens", "3"), 0, ""),
        (2, ("run", ""), 1, ""),
        (0, ("run", "-"), 1, "the prompt is empty"),
        (0, ("run",), 2, "PROMPT: give one"),
        (0, ("chat",), 0, ""),
    ],
)
def test_a_closed_stream_is_an_empty_one(
    descriptor: int, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = without(descriptor, *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count("\n") == bool(words)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk here")
@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("run", "hi", "-n", "2"), ("devices",)])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_one_line_that_names_it(
    arguments: tuple[str, ...], unbuffered: str
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PACELINE, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr == "paceline: error: stdout cannot be written: No space left on device\n"


@posix
def test_three_interrupts_in_a_row_are_as_good_as_one() -> None:
    endless = [*PACELINE, "run", "--raw", "Once", "--ban", "0", "--ban", "3", "--overflow", "slide"]
    with subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.read(1)
        for _ in range(3):
            run.send_signal(signal.SIGINT)
            time.sleep(0.01)
        assert run.stderr.read() == ""
        assert run.wait(20) == 130


@posix
def test_only_the_first_interrupt_counts_until_one_listens_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with first_interrupt_counts(until_exit=False):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        listen_again()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@posix
def test_an_interrupt_well_after_the_first_counts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.interrupts._IMPATIENCE", 0.0)
    with first_interrupt_counts(until_exit=False):
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)


@posix
def test_an_interrupt_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with first_interrupt_counts(until_exit=False):
            listen_again()
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_control_characters_are_taken_out_and_text_stays() -> None:
    assert (
        printable("\x1b]0;pwned\x07 \x9b31m\x7f\u202egrün\tja\n你好 👋🏽")
        == "]0;pwned 31mgrün\tja\n你好 👋🏽"
    )


def test_an_error_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    complain("refused: \x1b[31mred\x07")
    assert capsys.readouterr().err == "paceline: error: refused: [31mred\n"


def test_a_chat_on_a_terminal_shows_no_control_characters_of_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen(interactive=True)
    screen.note("\x1b]0;pwned\x07name")
    screen.tell("you: \x1b[2Jhi")
    screen.error("bad \x1b[31mname")
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "\x07" not in shown.out + shown.err


def bundle_that_says_escapes(folder: Path) -> Path:
    """The storyteller, but that it says ESC where it would end a sentence."""
    bundle = copied_bundle(folder)
    file, manifest = bundle / "tokenizer.json", bundle / "manifest.json"
    tokenizer, found = json.loads(file.read_text()), json.loads(manifest.read_text())
    words = tokenizer["model"]["vocab"]
    words["."], words[ESCAPE] = words[ESCAPE], words["."]
    raw = json.dumps(tokenizer).encode()
    file.write_bytes(raw)
    found["files"]["tokenizer.json"] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    manifest.write_text(json.dumps(found))
    return bundle


ESCAPE = chr(256 + 0x1B)
"""How a byte-level vocabulary writes ESC."""
ASKED = "Tell me a story about a cat"


@needs_terminal
def test_what_a_model_says_steers_no_terminal_and_reaches_a_pipe_whole(tmp_path: Path) -> None:
    bundle = bundle_that_says_escapes(tmp_path)
    usual = ("-b", bundle, "--max-tokens", "40", "--temp", "0")
    with Terminal("run", ASKED, *usual) as screen:
        assert "\x1b" not in screen.rest()
    with Terminal("chat", *usual, stdin=f"{ASKED}\n/history\n") as screen:
        shown = screen.rest()
        assert "model: " in shown
        assert "\x1b" not in shown
    assert "\x1b" in call("run", ASKED, *usual).out
    assert "\x1b" in call("chat", *usual, stdin=f"{ASKED}\n").out


@needs_terminal
def test_a_strangers_chat_and_prompt_names_steer_no_terminal(tmp_path: Path) -> None:
    saved, prompts = tmp_path / "saved.json", tmp_path / "prompts.jsonl"
    evil = "\x1b]52;c;ZQ==\x07 \x9b2J \u202eecho"
    messages = [{"role": "user", "content": evil}]
    saved.write_text(json.dumps({"system": evil, "messages": messages, "paceline_chat": 1}))
    prompts.write_text(json.dumps({"category": evil, "prompt": "Tell me a story.", "question_id": evil}))
    with Terminal("chat", stdin=f"/load {saved}\n/history\n/set\n") as screen:
        shown = screen.rest()
    with Terminal("bench", "--prompts", prompts, "--drafters", "lookup", "--max-tokens", "2") as screen:
        shown += screen.rest().replace("\x1b[K", "")
    assert "52;c;ZQ==" in shown
    assert not set(shown) & set("\x1b\x07\x9b\u202e")


def test_json_escapes_what_would_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"text": "\x1b\x07\x7f\x9b\u202e grün 你\n"}
    for readable in (False, True):
        say_json(found, readable)
        shown = capsys.readouterr().out
        assert json.loads(shown) == found
        assert not set(shown) & set("\x1b\x07\x7f\x9b\u202e")
        assert ("grün 你" in shown) == readable


def test_inspect_shows_no_control_characters_of_a_manifest(tmp_path: Path) -> None:
    folder = copied_bundle(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["name"] = "\x1b]0;pwned\x07name"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = call("inspect", "-b", folder)  # shown harmlessly, or refused with a harmless line
    assert "\x1b" not in done.out + done.err
    assert "\x07" not in done.out + done.err


@needs_terminal
def test_an_error_on_a_terminal_is_broken_between_words() -> None:
    words = call("run", "hi", "--drafter", "psychic").err.split()
    with Terminal("run", "hi", "--drafter", "psychic", columns=40) as screen:
        lines = screen.rest().splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) < 40
    assert " ".join(lines).split() == words


def test_no_empty_line_precedes_the_error_of_an_export(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="wrong"), _progress(quiet=False):
        raise ValueError("wrong")
    assert capsys.readouterr().err == ""


def test_training_names_its_stages_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with training_bar() as (say, _):
        for stage in ("reading text", "encoding", "the target writes 1%", "the target writes 2%"):
            say(stage)
    assert capsys.readouterr().err == "reading text\nencoding\nthe target writes\n"


@pytest.mark.parametrize("shown", [training_bar, lambda: _progress(quiet=False)], ids=["train", "export"])
def test_an_interrupt_leaves_no_bar(
    shown: Callable[[], AbstractContextManager[object]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "60"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KeyboardInterrupt), shown():
        raise KeyboardInterrupt
    raw = capsys.readouterr().err
    drawn, erased, behind = raw.rpartition("\x1b[1A\x1b[2K")
    assert erased
    assert behind in ("", "paceline: stopped, nothing was written\n")
    widths = [len(line) for line in shown_by(drawn).replace("\r", "\n").split("\n")]
    assert 0 < max(widths) <= 60 - len("^C^C")  # what the terminal echoes stays in the line of the bar


def test_a_command_is_listed_once() -> None:
    from paceline.commands import app

    names = [c.callback.__name__ for c in app.registered_commands if c.callback is not None]
    assert sorted(names) == sorted(set(names))


def test_the_smallest_context_is_told() -> None:
    assert "2 or more" in " ".join(call("run", "--help").out.replace("│", " ").split())
    assert call("run", "x", "-c", "1").code == 2


def test_an_export_into_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "target").mkdir(parents=True)
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    for inside in ("new", "drafters/new"):
        done = call("export", "model", tmp_path / "bundle" / inside)
        assert done.code == 1
        assert done.err.count("\n") == 1
        assert "inside the bundle" in done.err
