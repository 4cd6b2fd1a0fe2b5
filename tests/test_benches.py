"""Measuring scripts run, if only for a moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"
MOMENT = {
    "cache_speed": "BUNDLE --contexts 8 --widths 1,2 --rounds 2",
    "exactness": "BUNDLE --prompts 1 --tokens 4 --widths 2 --threads 1 --drafters chain",
    "never_slower": "--pairs 1 --tokens 70 --sweep 1 --only hostile --json OUT",
    "random_checkpoint": "OUT --shape tiny",
    "speculation": "BUNDLE --drafters chain --tokens 8 --requests 1 --threads 1",
    "verify_cost": "--engine paceline=BUNDLE --contexts 8 --threads 1 --rounds 1 --times 1 --tokens 2",
}
"""The least that a script does, as somebody would type it."""
PEERS = {
    "against_ort_genai": ("onnxruntime_genai", "BUNDLE BUNDLE"),
    "engines": ("llama_cpp", "llama.cpp BUNDLE 1 8"),
}
"""What needs another engine, and says so."""


def script(name: str, arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    from paceline.embedded import embedded_bundle

    places = {"BUNDLE": str(embedded_bundle()), "OUT": str(folder / "out")}
    words = arguments.split()
    for name_of, place in places.items():
        words = [word.replace(name_of, place) for word in words]
    return subprocess.run(
        [sys.executable, BENCH / f"{name}.py", *words],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
    )


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("name", MOMENT)
def test_a_script_runs_for_a_moment(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = script(name, MOMENT[name], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "nan" not in done.stdout.lower().split()


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_script_without_its_peer_says_so_in_one_line(name: str, tmp_path: Path) -> None:
    module, arguments = PEERS[name]
    if subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 0:
        pytest.skip(f"{module} is installed")
    done = script(name, arguments, tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "not installed" in done.stderr
