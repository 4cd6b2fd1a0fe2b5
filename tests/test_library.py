"""Finding, choosing and registering the native library; where it cannot run, the function bodies do, with a reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from paceline.runtime.ops import library

needs_library = pytest.mark.skipif(not library.available(), reason="the native kernels were not built here")


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The library as before its first use."""
    monkeypatch.setattr(library, "_load", library._load.__wrapped__)
    monkeypatch.setattr(library, "_refusals", [])
    return monkeypatch


def told(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.skipif("PACELINE_REQUIRE_KERNELS" not in os.environ, reason="no kernels are required")
def test_required_kernels_are_there() -> None:
    assert library.available(), library.kernels_in_use()


@needs_library
def test_the_best_level_runs_unless_another_is_asked_for() -> None:
    levels = library.levels()
    assert levels[0] == "portable"
    assert library.level() in levels
    assert library.kernels_in_use() == f"native ({library.level()})"
    show = "from paceline.runtime.ops import library; print(library.level())"
    for level in levels:
        assert told(show, PACELINE_KERNELS=level).stdout.strip() == level
    assert told(show, PACELINE_KERNELS="").stdout.strip() == levels[-1]


@needs_library
def test_every_level_can_be_used_and_no_other() -> None:
    best = library.level()
    assert best is not None
    for level in library.levels():
        library.use(level)
        assert library.level() == level
    library.use(best)
    with pytest.raises(ValueError, match="this machine has no kernels 'avx9': portable"):
        library.use("avx9")
    assert library.level() == best


def test_none_leaves_the_function_bodies(unloaded: pytest.MonkeyPatch) -> None:
    unloaded.setenv(library.VARIABLE, "none")
    assert not library.available()
    assert library.level() is None
    assert library.levels() == ()
    assert library.kernels_in_use() == "ONNX function bodies: PACELINE_KERNELS=none"
    library.register(SimpleNamespace())  # not even asked for register_custom_ops_library
    with pytest.raises(ValueError, match="no kernels 'portable': ONNX function bodies"):
        library.use("portable")


@needs_library
def test_an_unknown_level_is_one_line_that_names_those_of_this_machine(unloaded: pytest.MonkeyPatch) -> None:
    unloaded.setenv(library.VARIABLE, "avx9")
    for asked in (library.available, library.kernels_in_use, lambda: library.register(SimpleNamespace())):
        with pytest.raises(
            ValueError, match=r"^PACELINE_KERNELS is 'avx9', but this machine has: none, portable"
        ):
            asked()


def test_without_a_library_there_is_a_reason_and_no_warning(
    unloaded: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unloaded.delenv(library.VARIABLE, raising=False)
    unloaded.setattr(library, "_PATH", tmp_path / "kernels.so")
    assert not library.available()
    assert library.kernels_in_use().startswith("ONNX function bodies: no native library was built")
    assert caplog.records == []


def test_a_library_that_does_not_load_is_a_warning_and_a_reason(
    unloaded: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unloaded.delenv(library.VARIABLE, raising=False)
    broken = tmp_path / "kernels.so"
    broken.write_bytes(b"not a library")
    unloaded.setattr(library, "_PATH", broken)
    assert not library.available()
    assert len(caplog.records) == 1
    assert "does not load" in caplog.text
    assert str(broken) in library.kernels_in_use()


@needs_library
def test_a_library_that_the_runtime_refuses_is_a_warning_once_and_a_reason(
    unloaded: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unloaded.delenv(library.VARIABLE, raising=False)

    def refuse(path: str) -> None:
        raise RuntimeError(f"cannot use {path}\nand more")

    for _ in range(2):
        library.register(SimpleNamespace(register_custom_ops_library=refuse))
    assert len(caplog.records) == 1
    assert not library.available()
    assert library.level() is None
    assert library.kernels_in_use().startswith("ONNX function bodies: ONNX Runtime refuses")
    assert "and more" not in library.kernels_in_use()


@needs_library
def test_a_library_of_another_layout_is_not_used(
    unloaded: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unloaded.delenv(library.VARIABLE, raising=False)
    unloaded.setattr(library, "VERSION", 1000)
    assert not library.available()
    assert "reads packed layout 2, not 1000" in library.kernels_in_use()


def test_the_warning_reaches_stderr_as_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "kernels.so"
    broken.write_bytes(b"not a library")
    code = (
        "from pathlib import Path; from paceline.runtime.ops import library; "
        f"library._PATH = Path({str(broken)!r}); print(library.available())"
    )
    ran = told(code, PACELINE_KERNELS="")
    assert ran.stdout.strip() == "False"
    assert ran.stderr.startswith("paceline: warning: ")
    assert len(ran.stderr.strip().splitlines()) == 1


def test_importing_the_package_loads_no_library() -> None:
    code = "import sys, paceline; print([m for m in sys.modules if 'ops' in m or m == 'ctypes'])"
    assert told(code).stdout.strip() == "[]"
