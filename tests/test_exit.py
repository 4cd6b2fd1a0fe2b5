"""How a process ends: answers that are given up, Ctrl-C at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from paceline.errors import friendly_errors
from paceline.interrupts import first_interrupt_counts

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
from paceline.runtime.model.device import onnxruntime
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
