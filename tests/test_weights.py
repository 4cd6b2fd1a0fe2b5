"""Weights in huge pages: what the file says, read once, shared, and given back."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from paceline.runtime.manifest import BundleError, Weight
from paceline.runtime.model.weights import Weights, huge_pages, load_weights

pytestmark = pytest.mark.skipif(not huge_pages(), reason="this system gives no huge pages")

LISTED = {
    "codes": Weight("uint8", [4, 1000], 64),
    "scales": Weight("float16", [3, 16], 8192),
    "signed": Weight("int8", [64], 8320),
    "half": Weight("bfloat16", [5, 3], 12288),
    "single": Weight("float32", [7], 65536),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx.data"
    path.write_bytes(np.random.default_rng(0).integers(0, 64, 1 << 17, dtype=np.uint8).tobytes())
    return path


def loaded(path: Path) -> Weights:
    found = load_weights(path, LISTED)
    assert found is not None
    return found


def test_every_tensor_has_the_bytes_type_and_shape_that_it_has_in_the_file(data: Path) -> None:
    weights, raw = loaded(data), data.read_bytes()
    values = weights.values(LISTED)
    assert weights.bytes < len(raw)
    for name, weight in LISTED.items():
        value, said = values[name], raw[weight.offset : weight.offset + weight.bytes]
        assert value.shape() == list(weight.shape)
        if name == "half":
            assert value.element_type() == 16  # numpy has no bfloat16
        else:
            assert value.numpy().dtype == weight.dtype
            assert value.numpy().tobytes() == said
    half = np.frombuffer(raw, np.uint16, 15, LISTED["half"].offset)
    held = np.frombuffer((ctypes.c_uint16 * 15).from_address(values["half"].data_ptr()), np.uint16)
    assert (held == half).all()


def test_large_tensors_stand_as_they_do_in_the_file_at_aligned_addresses(data: Path) -> None:
    weights = loaded(data)
    for name, value in weights.values(LISTED).items():
        assert value.data_ptr() % 64 == 0, name


def test_two_sessions_share_a_buffer_until_the_file_changes(data: Path) -> None:
    first = loaded(data)
    assert loaded(data.parent / "." / data.name) is first
    os.utime(data, ns=(1, 1))
    assert loaded(data) is not first


def test_a_buffer_lives_as_long_as_it_is_used(data: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    size = 48 << 20
    with data.open("wb") as file:
        file.truncate(size)
    listed = {"w": Weight("uint8", [size], 0)}
    before = resident()
    weights = load_weights(data, listed)
    assert weights is not None
    values = weights.values(listed)
    del weights
    gc.collect()
    assert resident() - before > size - (4 << 20)
    assert not values["w"].numpy().any()
    del values
    gc.collect()
    assert resident() - before < size // 2


def test_loading_takes_no_more_memory_than_the_weights(data: Path) -> None:
    size = 96 << 20
    with data.open("wb") as file:
        file.truncate(size)
    script = """
import sys
from pathlib import Path
from paceline.runtime.manifest import Weight
from paceline.runtime.model.weights import load_weights

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

before = peak()
weights = load_weights(Path(sys.argv[1]), {"w": Weight("uint8", [int(sys.argv[2])], 0)})
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, data, str(size)], capture_output=True, text=True, check=True
    )
    assert size * 0.9 < int(done.stdout) < size * 1.2


def test_a_file_that_ends_too_early_is_refused(data: Path) -> None:
    with data.open("r+b") as file:
        file.truncate(65536 + 8)
    with pytest.raises(BundleError, match="ends too early"):
        load_weights(data, LISTED)
    data.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        load_weights(data, LISTED)


def test_no_weights_are_no_buffer(data: Path) -> None:
    assert load_weights(data, {}) is None


@pytest.mark.export
def test_a_session_reads_the_buffer_itself_and_not_the_file(tmp_path: Path) -> None:
    from external_graph import write_graph
    from onnx import TensorProto, helper

    table = np.arange(6 * 4096, dtype=np.float32).reshape(6, 4096)
    path = tmp_path / "g.onnx"
    node = helper.make_node("Gather", ["w", "ids"], ["y"])
    listed = write_graph(path, node, {"ids": TensorProto.INT64}, {"w": table})
    data = tmp_path / "g.onnx.data"
    weights = load_weights(data, listed)
    assert weights is not None
    data.write_bytes(bytes(table.nbytes))
    value = weights.values(listed)["w"]
    options = ort.SessionOptions()
    options.add_initializer("w", value)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ids = np.array([5])
    assert (session.run(None, {"ids": ids})[0] == table[5]).all()
    value.numpy()[5] = -1
    assert (session.run(None, {"ids": ids})[0] == -1).all()
