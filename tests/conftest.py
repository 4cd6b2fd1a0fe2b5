"""Nothing of a test run reaches the user's own caches and models."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from careful_device import Driver

os.environ.setdefault("PACELINE_CACHE", tempfile.mkdtemp(prefix="paceline-tests-"))
os.environ["PACELINE_MODELS"] = os.path.join(os.environ["PACELINE_CACHE"], "models")
# A shell tells its jobs in the background to ignore it, and what tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_settled = 0
"""Modules that were loaded when objects were last set apart."""


def pytest_runtest_setup() -> None:
    """What libraries keep for good is set apart: looking at torch's objects takes a third of a second a collection."""
    global _settled
    if len(sys.modules) > _settled + 200:
        gc.collect()
        gc.freeze()
        _settled = len(sys.modules)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded bundle that costs no space: weights are hard links, everything else is a copy."""
    from paceline.embedded import embedded_bundle

    def place(source: str, to: str) -> None:
        try:
            (os.link if source.endswith(".data") else shutil.copy2)(source, to)
        except OSError:
            shutil.copy2(source, to)

    return Path(shutil.copytree(embedded_bundle(), tmp_path / "bundle", copy_function=place))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: threads wait for each other, on a machine that does other work longer than they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def careful(monkeypatch: pytest.MonkeyPatch) -> str:
    """The word of a device that is the CPU, opened, bound and run as others are."""
    from careful_device import CAREFUL

    from paceline.runtime.budget import libraries
    from paceline.runtime.model import providers

    monkeypatch.setitem(providers.PROVIDERS, CAREFUL.word, CAREFUL)
    monkeypatch.setitem(libraries.GUESSES, CAREFUL.word, libraries.NONE)  # it has none
    return CAREFUL.word


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Its driver, which may fail."""
    from careful_device import Driver

    made = Driver()
    made.watch(monkeypatch)
    return made
