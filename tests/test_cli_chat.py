"""`paceline chat`: commands, history, and Ctrl-C."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import call
from terminal import Terminal, needs_terminal

from paceline.chat_commands import perform
from paceline.chat_screen import Screen
from paceline.chat_settings import Settings, setting_names
from paceline.conversation import Conversation
from paceline.errors import expected
from paceline.runtime.answer import Answer
from paceline.runtime.events import Event
from paceline.runtime.manifest import BundleError
from paceline.runtime.request import Sampling
from paceline.runtime.rules.laws import LogitsError
from paceline.runtime.session import Session
from paceline.transcript import load

SHORT = ("chat", "--temp", "0", "--max-tokens", "8")
CAT, DOG = "Tell me a story about a cat.", "Tell me a story about a dog."


def test_over_a_pipe_there_are_answers_and_nothing_else() -> None:
    done = call(*SHORT, stdin=f"{CAT}\n")
    alone = call("run", CAT, "--temp", "0", "--max-tokens", "8")
    assert done.code == 0
    assert done.err == ""
    assert done.out == alone.out


def test_an_unknown_command_is_an_error_and_never_reaches_the_model() -> None:
    done = call(*SHORT, stdin="/frobnicate now\n/history\n")
    assert "/frobnicate" in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""


def test_a_space_before_the_slash_sends_the_line() -> None:
    done = call(*SHORT, stdin=" /frobnicate\n/history\n")
    assert done.err == ""
    assert "you: /frobnicate" in done.out


def test_a_second_turn_sees_the_first_and_reuses_its_cache() -> None:
    done = call(*SHORT, stdin=f"{CAT}\n{DOG}\n/stats\n/history\n")
    assert done.out.count("you: ") == 2
    assert done.out.count("model: ") == 2
    stats = " ".join(done.out.split()).partition("prompt of ")[2]
    assert int(stats.partition(" of them from the cache")[0].rpartition(" ")[2]) > 10


def test_clear_keeps_the_system_prompt_and_reset_brings_back_the_start() -> None:
    script = f"{CAT}\n/clear\n/history\n/set system Be brief.\n/set temp 0.5\n/reset\n/history\n/set\n"
    done = call(*SHORT, "-s", "Be kind.", stdin=script)
    assert done.out.count("system: Be kind.") == 2
    assert "you:" not in done.out
    assert "Be brief." not in done.out
    assert "temp               0.0" in done.out


def test_every_name_of_leaving_leaves() -> None:
    for word in ("/exit", "/quit", "/bye", "/EXIT"):
        assert call(*SHORT, stdin=f"{word}\n{CAT}\n").out == ""


def test_help_lists_every_command_in_80_columns() -> None:
    done = call(*SHORT, stdin="/help\n/?\n")
    for name in ("exit", "clear", "reset", "history", "stats", "set", "save", "load", "regen"):
        assert f"/{name}" in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_settings_change_the_next_answer() -> None:
    done = call("chat", stdin=f"/set max-tokens 3\n/set seed 5\n/set drafter lookup\n{CAT}\n/stats\n")
    assert "3 tokens, " in done.out
    assert "drafter lookup" in done.out


@pytest.mark.parametrize(
    "line",
    ["/set temp hot", "/set top-p 2", "/set seed -1", "/set colour red", "/set temp", "/set drafter psychic",
     "/set accept maybe", "/set show-draft perhaps", "/load", "/save", "/load none.json", "/stats", "/regen"],
)  # fmt: skip
def test_a_wrong_command_is_one_line_and_the_chat_goes_on(line: str, tmp_path: Path) -> None:
    done = call(*SHORT, stdin=f"{line}\n/set max-tokens 2\n{CAT}\n/history\n")
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("paceline: error: ")
    assert f"you: {CAT}" in done.out


def test_a_saved_chat_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    first = call(*SHORT, "-s", "Be kind.", stdin=f"{CAT}\n/save {file}\n{DOG}\n/history\n")
    second = call(*SHORT, stdin=f"/load {file}\n{DOG}\n/history\n")
    assert first.out.partition("system: ")[2] == second.out.partition("system: ")[2]
    assert "Be kind." in second.out


def test_what_nobody_should_miss_is_said_over_a_pipe_too(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    call(*SHORT, stdin=f"{CAT}\n/save {path}\n")
    cache = path.with_name("talk.json.cache")
    cache.write_bytes(cache.read_bytes()[:-1])
    done = call(*SHORT, stdin=f"/load {path}\nAnd then?\n")
    assert done.code == 0
    assert "damaged" in done.err
    assert "the chat is read again" in done.err


def test_a_cache_that_cannot_be_written_costs_only_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    cache = path.with_name("talk.json.cache")
    cache.write_text("my own notes")
    done = call(*SHORT, stdin=f"{CAT}\n/save {path}\n")
    assert (done.code, done.err.count("\n")) == (0, 1)
    assert "left alone" in done.err
    assert "the messages are saved" in done.err
    assert cache.read_text() == "my own notes"
    assert load(path).messages[0]["content"] == CAT


def test_what_is_no_chat_is_not_replaced_by_one(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text("my own notes")
    assert call(*SHORT, stdin=f"{CAT}\n/save {path}\n").code == 1
    assert [p.name for p in tmp_path.iterdir()] == ["talk.json"]
    assert path.read_text() == "my own notes"


@pytest.mark.parametrize("line", ["/save ~nosuchuser/x", "/load ~nosuchuser/x", f"/save {'x' * 300}"])
def test_a_file_that_cannot_be_is_one_line_and_nothing_is_lost(line: str) -> None:
    done = call(*SHORT, stdin=f"{CAT}\n{line}\n/history\n")
    assert done.err.count("\n") == 1
    assert "internal" not in done.err
    assert f"you: {CAT}" in done.out


def held(interactive: bool) -> Conversation:
    """A conversation of one turn, without a model, whose cache is one byte."""

    class Without:
        drafter_name = "none"
        bundle = SimpleNamespace(manifest=SimpleNamespace(name="none"))

        def save(self, path: Path) -> int:
            return path.write_bytes(b"\0")

        def reset(self) -> None:
            pass

    chat = Conversation(Without(), Settings(Sampling()), None, Screen(interactive))  # type: ignore[arg-type]
    chat.messages.append({"role": "user", "content": CAT})
    return chat


def test_another_saved_chat_is_replaced_at_the_second_asking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "talk.json"
    first, second = held(True), held(True)
    perform(first, f"/save {path}")
    assert f"in a new folder, {path.parent}" in capsys.readouterr().out
    first.messages.append({"role": "assistant", "content": "Once"})
    perform(first, f"/save {path}")  # its own
    assert len(load(path).messages) == 2
    with pytest.raises(ValueError, match="holds another chat: the same /save once more"):
        perform(second, f"/save {path}")
    assert len(load(path).messages) == 2
    perform(second, f"/save {path}")
    assert len(load(path).messages) == 1
    second.clear()
    with pytest.raises(ValueError, match="another chat"):
        perform(second, f"/save {path}")


def test_over_a_pipe_a_replaced_chat_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "talk.json"
    perform(held(False), f"/save {path}")
    perform(held(False), f"/save {path}")
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert "held another chat, which was replaced" in shown.err


@pytest.mark.parametrize("error", [RuntimeError("odd"), RecursionError(), AttributeError("gone")], ids=repr)
def test_no_exception_ends_the_chat(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(Session, "save", failing)
    done = call(*SHORT, stdin=f"{CAT}\n/save {tmp_path}/talk.json\n/history\n")
    assert f"you: {CAT}" in done.out
    assert "internal error" in done.err
    assert done.err.count("\n") == 1


def test_regen_answers_the_same_question_anew() -> None:
    done = call(*SHORT, "--temp", "1", "--seed", "3", stdin=f"{CAT}\n/regen\n/history\n")
    answers = done.out.partition("you: ")[0].strip()
    assert done.out.count("you: ") == 1
    assert done.out.count("model: ") == 1
    assert answers[: len(answers) // 3] * 2 != answers


def test_a_backslash_joins_lines() -> None:
    done = call(*SHORT, stdin="Tell me a story\\\nabout a cat.\n/history\n")
    assert "you: Tell me a story\nabout a cat." in done.out


def test_a_question_too_long_is_taken_back(tmp_path: Path) -> None:
    done = call(*SHORT, "-c", "64", stdin=f"{'word ' * 200}\n{CAT}\n/history\n")
    assert done.err.count("\n") == 1
    assert "context" in done.err
    assert done.out.count("you: ") == 1


def test_a_model_that_fails_is_one_line_and_the_chat_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second and the third answer fail on their way."""
    real, asked = Answer.__next__, itertools.count(1)

    def sometimes(self: Answer) -> Event:
        if len(self.tokens) == 1 and next(asked) in (2, 3):
            raise LogitsError("NaN logits")
        return real(self)

    monkeypatch.setattr(Answer, "__next__", sometimes)
    done = call(*SHORT, stdin=f"{CAT}\n{DOG}\n/regen\n/history\n{DOG}\n/history\n")
    assert done.err == "paceline: error: NaN logits\n" * 2
    first, second = done.out.split(f"you: {CAT}")[1:]
    assert first.count("model: ") == 1
    assert "you: " not in first
    assert second.count("model: ") == 2
    assert f"you: {DOG}" in second
    assert done.code == 1


@pytest.mark.parametrize(
    "error", [ValueError("a"), OSError(5, "a"), MemoryError(), LogitsError("a"), BundleError("a")], ids=repr
)
def test_an_answer_that_fails_leaves_the_conversation_as_it_was(error: Exception) -> None:
    class Failing:
        drafter_name = "none"
        context = 100

        def chat_tokens(self, *_: object, **__: object) -> list[int]:
            return [1]

        def left_out(self, *_: object) -> list[str]:
            return []

        def chat(self, *_: object, **__: object) -> object:
            raise error

    chat = Conversation(Failing(), Settings(Sampling()), None, Screen(False))  # type: ignore[arg-type]
    chat.messages += [{"role": "user", "content": CAT}, {"role": "assistant", "content": "Once"}]
    before = chat.messages.copy()
    with pytest.raises(type(error)):
        chat.regenerate()
    assert chat.messages == before
    with pytest.raises(type(error)):
        chat.answer(DOG)
    assert chat.messages == before
    assert isinstance(error, expected())


def test_a_piped_chat_without_failure_ends_with_0_and_one_with_it_with_1() -> None:
    assert call(*SHORT, stdin="/help\n").code == 0
    assert call(*SHORT, stdin="/frobnicate\n/help\n").code == 1


def test_settings_that_make_no_sense_are_refused_before_the_chat() -> None:
    done = call("chat", "--top-p", "0", stdin=f"{CAT}\n")
    assert (done.code, done.out) == (2, "")
    assert "--top-p: it must be above 0" in done.err


@pytest.mark.parametrize(("name", "value"), [("top-p", "0"), ("repeat-penalty", "0")])
def test_a_setting_that_no_answer_could_use_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0.0: it must be"):
        Settings(Sampling()).with_value(name, value)


@pytest.mark.parametrize("name", setting_names())
def test_every_setting_refuses_nonsense_and_shows_itself(name: str) -> None:
    settings = Settings(Sampling())
    assert name in dict(settings.shown())
    if name != "stop":
        with pytest.raises(ValueError, match=name):
            settings.with_value(name, "nonsense")


def test_a_setting_changes_a_copy() -> None:
    before = Settings(Sampling())
    after = before.with_value("temp", "0.7").with_value("seed", "4").with_value("stop", "END")
    assert (after.sampling.temperature, after.seed, after.stop) == (0.7, 4, ("END",))
    assert before == Settings(Sampling())
    assert after.with_value("seed", "none").seed is None


def test_every_source_has_a_look_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Screen(True)
    looks = [screen.look(f"source {number}") for number in range(40)]
    assert len(set(looks)) == 40
    assert looks == [screen.look(f"source {number}") for number in range(40)]


@needs_terminal
def test_ctrl_c_stops_the_answer_and_keeps_the_chat() -> None:
    # `--ban` takes end-of-sequence away, so that the answer is still going on when Ctrl-C comes.
    with Terminal("chat", "--show-draft", "--ban", "0", "--ban", "3", "--drafter", "none") as screen:
        screen.until(">>> ")
        screen.type(f"{CAT}\n")
        screen.until(CAT)
        screen.until("\n")
        screen.until(" ")
        screen.type("\x03")
        assert "stopped" in screen.until(">>> ")
        screen.type("/history\n")
        assert f"you: {CAT}" in screen.until("model: ")
        screen.until(">>> ")
        screen.interrupt("/exit or Ctrl-D leaves")
        screen.until(">>> ")
        assert screen.process.poll() is None
        screen.type("\x04")
        assert screen.process.wait(20) == 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_over_a_pipe_ends_with_130() -> None:
    command = [sys.executable, "-m", "paceline.main", "chat", "--ban", "0", "--ban", "3"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as chat:
        assert chat.stdin is not None
        assert chat.stdout is not None
        assert chat.stderr is not None
        chat.stdin.write(f"{CAT}\n".encode())
        chat.stdin.flush()
        chat.stdout.read(4)
        chat.send_signal(signal.SIGINT)
        assert chat.wait(20) == 130
        assert chat.stderr.read() == b""


def test_the_names_of_the_api_are_settings_too_and_a_near_one_is_suggested() -> None:
    done = call(*SHORT, stdin="/set temperature 0.7\n/set top_p 0.9\n/set repetition_penalty 1.2\n/set\n")
    assert done.err == ""
    for line in ("temp               0.7", "top-p              0.9", "repeat-penalty     1.2"):
        assert line in done.out
    wrong = call(
        *SHORT, stdin="/temprature 1\n/temp 1\n/max-token 3\n/histroy\n/set overflw slide\n"
    ).err.splitlines()
    meant = [line.partition("did you mean ")[2].partition("?")[0] for line in wrong]
    assert meant == ["/set temp", "/set temp", "/set max-tokens", "/history", "overflow"]
