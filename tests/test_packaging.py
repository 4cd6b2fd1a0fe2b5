"""The wheel, as a newcomer gets it: built, installed into an environment of its own, and telling a story."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


TRIED = {
    "numpy": "1.26",
    "tokenizers": "0.21",
    "jinja2": "3.1.6",
    "typer": "0.19",
    "rich": "13",
    "msgspec": "0.19",
    "onnxruntime": "1.24",
    "transformers": "5.3",
    "onnx": "1.19",
    "onnxscript": "0.7",
    "optimum": "2.1",
    "requests": "2.32.2",
    "gguf": "0.18",
    "huggingface_hub": "1.0",
}
"""The lowest versions that a story, an export or a pull ran with; typer 0.18, optimum 2.0 and onnxscript 0.5 failed."""
UNTRIED = {"torch", "safetensors", "prompt_toolkit", "wcwidth"}


def test_lower_bounds_are_versions_that_were_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needs = [*project["dependencies"], *extras["cpu"], *extras["export"]]
    bounds = dict(need.partition(",")[0].split(">=") for need in needs)
    assert {name: bound for name, bound in bounds.items() if name in TRIED} == TRIED
    assert set(bounds) - set(TRIED) <= UNTRIED  # a new bound is tried first


LIBRARY = "paceline/runtime/ops/kernels" + {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler"
)


def done(*command: str | Path, cwd: Path, **environment: str) -> str:
    ran = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr if "-v" in command else ran.stdout


def without_build_folder(tmp_path: Path) -> Path:
    """A copy of the source tree, so that what was built before cannot show."""
    copy = tmp_path / "source"
    ignored = shutil.ignore_patterns("build", "dist", ".*", "*.egg-info", "kernels.*", "__pycache__", "docs")
    return Path(shutil.copytree(ROOT, copy, ignore=ignored))


@needs_compiler
@pytest.mark.slow
def test_the_wheel_installs_into_a_new_environment_and_tells_a_story(tmp_path: Path) -> None:
    done(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, str(ROOT), cwd=tmp_path,
        PACELINE_REQUIRE_KERNELS="1",
    )  # fmt: skip
    (wheel,) = tmp_path.glob("paceline-*.whl")
    assert wheel.stat().st_size < 20 * 10**6
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    files = zipfile.ZipFile(wheel).namelist()
    assert LIBRARY in files
    assert not [name for name in files if name.endswith((".cpp", ".h", ".inc"))]
    venv.create(tmp_path / "env", with_pip=True)
    scripts = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    constraints = str(ROOT / "constraints.txt")
    done(
        scripts / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "-c",
        constraints,
        f"{wheel}[cpu]",
        cwd=tmp_path,
    )
    for heavy in ("torch", "transformers", "onnx"):
        ran = subprocess.run([scripts / "python", "-c", f"import {heavy}"], capture_output=True, check=False)
        assert ran.returncode != 0, f"{heavy} came in with the runtime"
    devices = json.loads(done(scripts / "paceline", "devices", "--json", cwd=tmp_path))
    assert devices["kernels"]["in_use"].startswith("native (")
    told = done(
        scripts / "paceline", "run", "--json", "--max-tokens", "60", "Tell me a story about a dog and a red ball.",
        cwd=tmp_path,
    )  # fmt: skip
    answer = json.loads(told)
    assert len(answer["token_ids"]) > 20
    assert "dog" in answer["text"] or "ball" in answer["text"]


@pytest.mark.skipif(sys.platform == "win32", reason="Visual C++ is found in the registry, not in CXX")
@pytest.mark.slow
def test_without_a_compiler_the_wheel_is_for_every_platform_and_one_line_says_what_that_costs(
    tmp_path: Path,
) -> None:
    source = without_build_folder(tmp_path)
    said = done(
        sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", tmp_path, source, cwd=tmp_path,
        CXX="no-such-compiler", PACELINE_REQUIRE_KERNELS="",
    )  # fmt: skip
    lines = [line for line in said.splitlines() if "kernels are skipped" in line]
    assert len(lines) == 1
    assert "slower on the CPU" in lines[0]
    (wheel,) = tmp_path.glob("paceline-*-py3-none-any.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    show = "from paceline.runtime.ops import library; print(library.__file__, library.kernels_in_use())"
    told = done(sys.executable, "-c", show, cwd=tmp_path, PYTHONPATH=str(installed), PACELINE_KERNELS="")
    assert told.startswith(str(installed))
    assert "ONNX function bodies: no native library was built" in told


@needs_compiler
@pytest.mark.slow
def test_an_editable_installation_puts_the_library_beside_its_source(tmp_path: Path) -> None:
    source = without_build_folder(tmp_path)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    done(
        python, "-m", "pip", "install", "--quiet", "--no-deps", "-e", source, cwd=tmp_path,
        PACELINE_REQUIRE_KERNELS="1",
    )  # fmt: skip
    assert (source / "runtime" / "ops" / Path(LIBRARY).name).exists()


@pytest.mark.slow
def test_the_source_archive_has_everything_that_the_library_is_built_from(tmp_path: Path) -> None:
    source = without_build_folder(tmp_path)
    done(sys.executable, "-m", "build", "--quiet", "--sdist", "-o", tmp_path, source, cwd=tmp_path)
    (archive,) = tmp_path.glob("paceline-*.tar.gz")
    with tarfile.open(archive) as opened:
        found = {name.partition("/")[2] for name in opened.getnames()}
    native = {path.relative_to(ROOT).as_posix() for path in (ROOT / "runtime" / "ops" / "native").iterdir()}
    assert native | {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= found
