"""The wheel, as a newcomer gets it: built, installed into an environment of its own, and telling a story."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def done(*command: str | Path, cwd: Path) -> str:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_the_wheel_installs_into_a_new_environment_and_tells_a_story(tmp_path: Path) -> None:
    done(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, str(ROOT), cwd=tmp_path
    )
    (wheel,) = tmp_path.glob("paceline-*.whl")
    assert wheel.stat().st_size < 20 * 10**6
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
    told = done(
        scripts / "paceline", "run", "--json", "--max-tokens", "60", "Tell me a story about a dog and a red ball.",
        cwd=tmp_path,
    )  # fmt: skip
    answer = json.loads(told)
    assert len(answer["token_ids"]) > 20
    assert "dog" in answer["text"] or "ball" in answer["text"]
