"""How a process ends: answers that are given up, Ctrl-C at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
from command_line import call
from interruption import ctrl_c, moments
from tiny_tokenizers import byte_level

from paceline.errors import friendly_errors
from paceline.interrupts import first_interrupt_counts
from paceline.runtime.text.text import Text

linux = pytest.mark.skipif(sys.platform != "linux", reason="what is known of signals there")
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

_KEPT = """
import paceline
s = paceline.load(drafter={drafter!r}, memory={memory!r})
a = s.generate("Once upon", max_tokens=20); next(a)
"""
_OUTLIVED = """
import paceline
with paceline.load(drafter={drafter!r}, memory={memory!r}) as s:
    b = s.generate("Once upon", max_tokens=20); next(b)
    cycle = [lambda: s]
    a = s.generate("There was", max_tokens=20); next(a)
"""
_IN_A_CYCLE = """
import paceline
class App:
    def __init__(self):
        self.session = paceline.load(drafter={drafter!r}, memory={memory!r})
        self.answer = self.session.generate("Once upon", max_tokens=20)
        self.me = self
app = App()
next(app.answer)
"""


@pytest.mark.parametrize("script", [_KEPT, _OUTLIVED, _IN_A_CYCLE], ids=["kept", "outlived", "in-a-cycle"])
@pytest.mark.parametrize(("drafter", "memory"), [("none", None), ("lookup", "900MB")])
def test_an_answer_that_is_given_up_at_exit_says_nothing(
    script: str, drafter: str, memory: str | None
) -> None:
    code = script.format(drafter=drafter, memory=memory)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


_IN_THE_LIBRARY = """
import signal, sys
def profile(frame, event, argument):
    # While the C++ part of ONNX Runtime is set up; 1 ms into it.
    if event == "c_call" and argument.__name__ == "exec_dynamic" and "pybind11_state" in str(frame.f_locals):
        sys.setprofile(None)
        signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 0.001)
"""
_COMMAND = """
from paceline.main import main
sys.setprofile(profile)
sys.exit(main(["devices"]))
"""
_RUNTIME = """
from paceline.runtime.model.ort import onnxruntime
sys.setprofile(profile)
try:
    onnxruntime()
except KeyboardInterrupt:
    sys.exit(130)
"""


@posix
@pytest.mark.parametrize("code", [_COMMAND, _RUNTIME], ids=["command", "runtime"])
def test_ctrl_c_while_onnx_runtime_is_imported_is_ctrl_c(code: str) -> None:
    """Its C++ part makes an ImportError of it."""
    done = subprocess.run(
        [sys.executable, "-c", _IN_THE_LIBRARY + code], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


_TOLD = ("--raw", "Once", "--ban", "0", "--ban", "3", "--max-tokens", "12")
_COMMANDS = {
    "run": (("run", *_TOLD), "", ""),
    "json": (("run", *_TOLD, "--json", "--drafter", "chain"), "", ""),
    "chat": (("chat", "--max-tokens", "8"), "Tell me of a cat.\n/set\n/stats\n", ""),
    "inspect": (("inspect", "--files"), "", ""),
    "bench": (
        ("bench", "--drafters", "lookup", "--max-tokens", "3", "--limit", "2", "--json"),
        "",
        r"(paceline: stopped .*\n)?",
    ),
}
"""A command, what it reads, what it may say when it is interrupted."""


@posix
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file just opened
@pytest.mark.parametrize("name", _COMMANDS)
def test_ctrl_c_at_any_moment_is_130_without_a_traceback(name: str) -> None:
    arguments, typed, says = _COMMANDS[name]
    assert call(*arguments, stdin=typed).code == 0  # what is loaded once is loaded
    with ctrl_c(0) as counted:
        whole = call(*arguments, stdin=typed)
    came = 0
    for at in moments(counted.calls, 12):
        with ctrl_c(at) as press:
            done = call(*arguments, stdin=typed)
        if press.came:
            came += 1
            assert (done.code, bool(re.fullmatch(says, done.err))) == (130, True), (done, press.came)
        if name == "json" and done.out:
            assert json.loads(done.out)["finish_reason"] in ("cancelled", "length")
        elif name == "run":
            assert whole.out.startswith(done.out.rstrip("\n"))
    assert came > 6


_FROM_THE_START = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is told to ignore it
from interruption import ctrl_c
from paceline.main import main
with ctrl_c(int(sys.argv.pop(1))) as press:
    code = main()
print(press.calls, bool(press.came), file=sys.stderr)
sys.exit(code)
"""


@posix
@pytest.mark.slow
def test_ctrl_c_at_any_moment_of_a_new_process_is_130_without_a_traceback() -> None:
    """Modules are imported then, and libraries may make something else of an interrupt, or nothing."""

    def told(at: int) -> tuple[int, str, str]:
        command = [sys.executable, "-c", _FROM_THE_START, str(at), "run", *_TOLD, "--json"]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=Path(__file__).parent,
        )
        said = done.stderr.splitlines()
        assert len(said) == 1, done.stderr
        calls, came = said[0].split()
        return done.returncode, calls, came

    code, calls, came = told(0)
    assert (code, came) == (0, "False")
    for at in moments(int(calls), 30):
        code, _, came = told(at)
        assert code == (130 if came == "True" else 0), at


@posix
def test_an_interrupt_where_python_cannot_raise_is_one_and_says_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Held:
        pass

    def pressed(gone: object) -> None:
        signal.raise_signal(signal.SIGINT)

    def go_on() -> None:
        held = Held()
        watched = weakref.ref(held, pressed)
        del held
        assert watched() is None

    with first_interrupt_counts(until_exit=False):
        assert friendly_errors(go_on) == 130
    assert "KeyboardInterrupt" not in capsys.readouterr().err


@posix
def test_an_interrupt_that_a_library_swallowed_is_an_interrupt() -> None:
    def go_on() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    with first_interrupt_counts(until_exit=False):
        assert friendly_errors(go_on) == 130
    with first_interrupt_counts(until_exit=False):
        assert friendly_errors(lambda: None) == 0


@posix
@pytest.mark.parametrize("pressed", [True, False])
def test_an_interrupt_that_a_library_made_an_error_of_is_an_interrupt(
    pressed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        try:
            if pressed:
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pass
        raise ImportError("half loaded")

    with first_interrupt_counts(until_exit=False):
        assert friendly_errors(fail) == (130 if pressed else 1)
    assert ("half loaded" in capsys.readouterr().err) != pressed


_IN_NATIVE_CODE = """
import sys
import weakref
from pathlib import Path
from paceline.errors import friendly_errors
from paceline.interrupts import first_interrupt_counts
from paceline.runtime.text.text import Text

def encode():
    text = Text.load(Path(sys.argv[1]))
    print("begun", flush=True)
    text.encode("a" * int(sys.argv[2]))
    print("done", flush=True)

with first_interrupt_counts(until_exit=True):
    sys.exit(friendly_errors(encode))
"""
_ONE_OF_TWO = r"(?=(a+)b)"
"""Looks through the rest of a run of a's at every place of it."""


@pytest.fixture
def slow_tokenizer(tmp_path: Path) -> Path:
    file = json.loads(byte_level().to_str())
    split = {"type": "Split", "pattern": {"Regex": _ONE_OF_TWO}, "behavior": "Isolated", "invert": False}
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, file["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    return tmp_path


def encoding(folder: Path, characters: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _IN_NATIVE_CODE, str(folder), str(characters)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@linux
def test_a_second_ctrl_c_ends_a_process_that_native_code_holds_up(slow_tokenizer: Path) -> None:
    with encoding(slow_tokenizer, 1_000_000) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        time.sleep(1.0)
        assert child.poll() is None  # the first one waits for Python
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == -signal.SIGINT


@linux
def test_one_ctrl_c_in_native_code_is_heard_when_it_returns(slow_tokenizer: Path) -> None:
    with encoding(slow_tokenizer, 16_000) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
        assert child.stdout.read() == ""


@linux
def test_after_native_code_ctrl_c_is_what_it_was(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    text = Text.load(tmp_path)
    with first_interrupt_counts(until_exit=False):
        text.encode("A short text.")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # would end the tests
