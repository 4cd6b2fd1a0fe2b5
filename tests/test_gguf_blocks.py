"""A GGUF file's own blocks go into a bundle as they are, however the graph has turned and joined its matrices."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

import numpy as np
import onnx
from gguf import GGMLQuantizationType as Kind
from gguf_files import Changes, make_model, random_blocks, write_model
from onnx import numpy_helper

from paceline.export.errors import ExportError
from paceline.export.gguf.blocks import Blocks
from paceline.export.gguf.reader import Gguf, Stored, read_gguf
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle

pytestmark = pytest.mark.export
FORMATS = {
    "Q4_0": (4, 32, False), "Q4_1": (4, 32, True), "Q5_0": (5, 32, False), "Q5_1": (5, 32, True),
    "Q8_0": (8, 32, False), "Q4_K": (4, 32, True), "Q5_K": (5, 32, True), "Q6_K": (6, 16, False),
}  # fmt: skip


def file_of(**tensors: tuple[str, int, int]) -> Gguf:
    """Random blocks: kind, rows and columns by name."""
    found = {}
    for seed, (name, (kind, rows, columns)) in enumerate(tensors.items()):
        found[name] = Stored(name, (rows, columns), kind, random_blocks(kind, rows, columns, seed))
    return Gguf(Path("m.gguf"), {}, found)


def values(file: Gguf, name: str) -> Any:
    return file.tensors[name].values()


@pytest.mark.parametrize("kind", FORMATS)
def test_blocks_come_back_without_rounding(kind: str) -> None:
    file = file_of(a=(kind, 40, 512))
    blocks, meant = Blocks(file), values(file, "a")
    made = blocks.choose("a", meant.T)
    assert made is not None
    assert (made.bits, made.block, made.minima is not None) == FORMATS[kind]
    assert len(np.unique(made.codes)) > 2 ** (made.bits - 1)
    off = np.abs(made.dense(0, 40) - meant)
    assert blocks.largest == off.max()
    if kind.endswith("_K"):  # scales are products, rounded to half precision once
        assert 0 < off.max() < 1e-3 * np.abs(meant).max()
        assert 0 < made.error < 5e-4
    else:
        assert off.max() == 0
        assert made.error == 0
    assert blocks.notes == []


def test_joined_turned_permuted_and_empty_columns_are_found() -> None:
    file = file_of(a=("Q4_1", 24, 256), b=("Q4_K", 8, 256), c=("Q4_1", 16, 256))
    rows = np.concatenate([values(file, name) for name in "abc"])
    rows = rows[np.random.default_rng(1).permutation(48)]
    rows[5] = 0
    blocks = Blocks(file)
    for matrix in (rows.T, np.ascontiguousarray(rows.T)):
        made = blocks.choose("fused", matrix)
        assert made is not None
        assert np.abs(made.dense(0, 48) - rows).max() < 1e-3 * np.abs(rows).max()
        assert not made.dense(5, 6).any()


def test_what_has_no_blocks_stays_floats_and_says_why() -> None:
    file = file_of(a=("Q4_0", 8, 256), b=("Q8_0", 8, 256), c=("Q2_K", 8, 256))
    plain = np.random.default_rng(0).normal(size=(8, 256)).astype(np.float32)
    file.tensors["d"] = Stored("d", (8, 256), "F32", plain.view(np.uint8))
    blocks = Blocks(file)
    assert blocks.choose("d", plain.T) is None
    assert blocks.notes == []
    assert blocks.choose("ab", np.concatenate([values(file, "a"), values(file, "b")]).T) is None
    assert blocks.choose("c", values(file, "c").T) is None
    assert blocks.choose("x", values(file, "a").T + 1) is None
    assert [note.partition(" ")[0] for note in blocks.notes] == ["ab", "c", "x"]
    assert "several formats (Q4_0, Q8_0)" in blocks.notes[0]


def test_scales_too_large_for_half_precision_leave_floats() -> None:
    data = random_blocks("Q6_K", 4, 256, 0, 30000.0)
    file = Gguf(Path("m.gguf"), {}, {"a": Stored("a", (4, 256), "Q6_K", data)})
    blocks = Blocks(file)
    assert blocks.choose("a", values(file, "a").T) is None
    assert "too large" in blocks.notes[0]


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_scales_below_the_normal_numbers_of_half_precision_lose_nothing(kind: str) -> None:
    data = random_blocks(kind, 4, 256, 0, 3e-7)
    file = Gguf(Path("m.gguf"), {}, {"a": Stored("a", (4, 256), kind, data)})
    made = Blocks(file).choose("a", values(file, "a").T)
    assert made is not None
    assert (np.abs(made.scales) < np.finfo(np.float16).smallest_normal).all()
    assert np.array_equal(made.dense(0, 4), values(file, "a"))


def written(path: Path, kind: Kind, **settings: Any) -> Path:
    return write_model(path, make_model("llama, tied"), changes=Changes(kind=lambda name: kind, **settings))


@pytest.mark.parametrize(
    "kind",
    ["Q4_1", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("Q4_0", "Q5_0", "Q5_1", "Q8_0"))],
)
def test_a_bundle_holds_the_blocks_of_its_file(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", Kind[kind])
    report = export_bundle(Order(str(path)), tmp_path / "bundle")
    made = report.parts["target"]
    assert (made.part.quant, made.part.block, made.matrix_error) == ("keep", None, 0.0)
    bits, _, minima = FORMATS[kind]
    width = {"Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5}[kind]
    stored = {t.name: t for t in onnx.load(tmp_path / "bundle" / made.part.graph).graph.initializer}
    codes = [t for name, t in stored.items() if name.endswith(f".q{bits}")]
    scales = [t for name, t in stored.items() if name.endswith(".scales")]
    numbers = sum(t.shape[0] * t.shape[1] for t in read_gguf(path).tensors.values() if len(t.shape) == 2)
    assert sum(numpy_helper.to_array(t).nbytes for t in codes + scales) == numbers * width / 8
    assert all(t.dims[-1] == (32 if minima else 16) for t in scales)
    assert made.agreement.top1 > 0.9


@pytest.mark.slow
def test_rounding_again_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", Kind.Q4_1)
    report = export_bundle(Order(str(path), quant="int8"), tmp_path / "bundle")
    assert report.parts["target"].part.quant == "int8"
    assert any("came in Q4_1 and were rounded again" in note for note in report.notes)


def test_keeping_needs_a_gguf_file(tmp_path: Path) -> None:
    from small_checkpoints import write_checkpoint

    folder = write_checkpoint(tmp_path / "model")
    with pytest.raises(ExportError, match="--quant keep is for GGUF files"):
        export_bundle(Order(str(folder), quant="keep"), tmp_path / "bundle")
    assert export_bundle(Order(str(folder)), tmp_path / "bundle").parts["target"].part.quant == "none"


@pytest.mark.slow
def test_formats_that_differ_within_a_layer_and_an_untied_table_are_all_kept(tmp_path: Path) -> None:
    def kind(name: str) -> Kind:
        some = {"attn_v": Kind.Q8_0, "ffn_down": Kind.Q5_1, "token_embd": Kind.Q5_0, "output.": Kind.F16}
        return next((chosen for part, chosen in some.items() if part in name), Kind.Q4_1)

    path = write_model(tmp_path / "m.gguf", make_model("llama"), changes=Changes(kind=kind))
    report = export_bundle(Order(str(path)), tmp_path / "bundle")
    made = report.parts["target"]
    assert not any("floats" in note for note in report.notes)
    stored = {t.name: t for t in onnx.load(tmp_path / "bundle" / made.part.graph).graph.initializer}
    size = sum(
        numpy_helper.to_array(t).nbytes for n, t in stored.items() if ".q" in n or n.endswith(".scales")
    )
    whole = read_gguf(path).tensors.values()
    assert size == sum(t.data.nbytes for t in whole if t.kind in FORMATS)
    assert made.matrix_error == 0
    assert made.agreement.top1 > 0.9
