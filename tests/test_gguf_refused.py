"""GGUF files that are damaged, hostile or not carried: one line says so, and nothing is read that they only claim."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf_files import Changes, byte_level_keys, keys_of, make_model, tensors_of, write_file, write_model
from small_checkpoints import small_tokenizer, write_checkpoint

from paceline.export.candidate import examine
from paceline.export.errors import ExportError
from paceline.export.source import load_model

pytestmark = pytest.mark.export
ONE = np.ones((4, 64), np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gguf") / "model.gguf", make_model("llama"))


def refused(source: str, *words: str, file: str | None = None) -> None:
    with pytest.raises(ExportError) as caught:
        load_model(examine(source, file=file))
    said = str(caught.value)
    assert "\n" not in said
    assert "/tmp/paceline-gguf" not in said
    assert [word for word in words if word not in said] == []


def refusal(path: Path) -> str | None:
    try:
        examine(str(path))
    except ExportError as error:
        return str(error)
    return None


def head(version: int = 3, tensors: int = 0, keys: int = 0, order: str = "<") -> bytes:
    return b"GGUF" + struct.pack(f"{order}IQQ", version, tensors, keys)


def text(words: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(words) if length is None else length) + words


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "too short"),
        (b"PK" + bytes(30), "no GGUF file"),
        (head(4), "version 4"),
        (head(1), "version 1"),
        (head(3, order=">"), "big-endian"),
        (head(keys=2**60) + bytes(64), "claims 1152921504606846976 keys"),
        (head(tensors=2**60) + bytes(64), "claims 1152921504606846976 tensors"),
        (head(keys=1) + text(b"general.name", 2**62) + bytes(9), "ends in the middle"),
        (head(keys=1) + text(b"k") + struct.pack("<I", 77) + bytes(9), "unknown type 77"),
        (head(keys=1) + text(b"k") + struct.pack("<IIQ", 9, 4, 2**61) + bytes(9), "claims 2305843009213693952 numbers"),
        (head(keys=1) + text(b"k") + struct.pack("<IIQ", 9, 8, 2**61) + bytes(9), "claims 2305843009213693952 texts"),
        (head(keys=1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(9), "the type 9"),
        (head(keys=1) + text(b"\xff\xfe") + bytes(9), "not UTF-8"),
        (head(keys=2) + 2 * (text(b"k") + struct.pack("<IB", 0, 1)), "says 'k' twice"),
        (head(tensors=1) + text(b"t") + struct.pack("<I", 9) + bytes(64), "9 dimensions"),
        (head(tensors=1) + text(b"t") + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0) + bytes(64), "is cut off"),
        (head(tensors=1) + text(b"t") + struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0) + bytes(64), "is cut off"),
        (head(tensors=1) + text(b"t") + struct.pack("<IQIQ", 1, 8, 0, 2**63) + bytes(64), "is cut off"),
        (head(tensors=1) + text(b"t") + struct.pack("<IQIQ", 1, 0, 0, 0) + bytes(64), "the shape [0]"),
        (head(tensors=1) + text(b"t") + struct.pack("<IQIQ", 1, 33, 2, 0) + bytes(64), "the shape [33]"),
        (
            head(tensors=2) + text(b"t") + struct.pack("<IQIQ", 1, 8, 0, 0) + text(b"u")
            + struct.pack("<IQIQ", 1, 8, 0, 0) + bytes(128), "tensors that overlap, 't' and 'u'"
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ],
)  # fmt: skip
def test_a_damaged_head(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    refused(str(tmp_path / "m.gguf"), str(tmp_path / "m.gguf"), says)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut(share: float, whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    (tmp_path / "m.gguf").write_bytes(content[: int(share * len(content))])
    refused(str(tmp_path / "m.gguf"), "fetch it again")


def test_bytes_that_were_changed_anywhere_in_the_head_never_end_in_a_traceback(
    whole: Path, tmp_path: Path
) -> None:
    content = whole.read_bytes()
    rng = np.random.default_rng(4)
    path = tmp_path / "m.gguf"
    refusals = []
    for _ in range(150):
        changed = bytearray(content)
        for place in rng.integers(0, 3000, 3):
            changed[place] = rng.integers(0, 256)
        path.write_bytes(changed)
        if (said := refusal(path)) is not None:
            refusals.append(said)
    assert len(refusals) > 50
    assert not any("\n" in said for said in refusals)


KEYS: list[tuple[dict[str, Any], str]] = [
    ({"general.type": "adapter"}, "LoRA adapter"),
    ({"general.type": "mmproj"}, "multimodal projector"),
    ({"general.architecture": "clip"}, "multimodal projector"),
    ({"general.type": "imatrix"}, "statistics"),
    ({"general.architecture": "nomic-bert"}, "encoder"),
    ({"general.architecture": "mamba2"}, "state-space"),
    ({"general.architecture": "qwen3moe"}, "mixture of experts"),
    ({"general.architecture": "minicpm"}, "'minicpm' are not carried"),
    ({"llama.expert_count": 8}, "mixture of experts"),
    ({"llama.attention.causal": False}, "encoder"),
    ({"llama.residual_scale": 0.5}, "llama.residual_scale"),
    ({"llama.attention.value_length": 32}, "value_length is 32"),
    ({"llama.rope.dimension_count": 8}, "dimension_count is 8"),
    ({"llama.rope.scaling.type": "longrope"}, "scaling.type is 'longrope'"),
    ({"llama.rope.scaling.attn_factor": 1.5}, "attn_factor"),
    ({"llama.attention.head_count": None}, "head_count is missing"),
    ({"llama.attention.head_count_kv": [1, 2]}, "differs from layer to layer"),
    ({"llama.attention.head_count": 3}, "llama"),
    ({"llama.block_count": 3}, "lacks weights"),
    ({"llama.block_count": 1}, "model.layers.1"),
    ({"llama.block_count": 2**31 - 1}, "2147483647 layers"),
    ({"llama.embedding_length": 128}, "dimension_count is 16"),
    ({"llama.feed_forward_length": 2**31 - 1}, "shape"),
    ({"llama.rope.freq_base": float("nan")}, "freq_base is 'nan'"),
    ({"llama.context_length": "long"}, "context_length is 'long'"),
    ({"general.alignment": 3}, "aligns its tensors to 3"),
    ({"llama.context_length": 2**31 - 1}, "a context has 2147483647 tokens"),
    (
        {"llama.attention.layer_norm_rms_epsilon": None},
        "layer_norm_rms_epsilon is missing, and must be a number",
    ),
    ({"tokenizer.ggml.eos_token_id": 99999}, "tokenizer.ggml.eos_token_id 99999 is none of"),
    ({"tokenizer.ggml.bos_token_id": "<s>"}, "tokenizer.ggml.bos_token_id <s> is none of"),
    ({"tokenizer.chat_template": 5}, "tokenizer.chat_template is no text"),
]


@pytest.mark.parametrize(("keys", "says"), KEYS, ids=[says for _, says in KEYS])
def test_what_is_not_carried_is_named(keys: dict[str, Any], says: str, tmp_path: Path) -> None:
    refused(str(write_model(tmp_path / "m.gguf", make_model("llama"), changes=Changes(keys))), says)


TENSORS: list[tuple[dict[str, Any], str]] = [
    ({"blk.0.attn_sinks.weight": ONE}, "blk.0.attn_sinks.weight"),
    ({"blk.0.ffn_gate_exps.weight": ONE}, "mixture of experts"),
    ({"rope_freqs.weight": np.ones(3, np.float32)}, "rope_freqs.weight"),
    ({"rope_freqs.weight": np.zeros(8, np.float32)}, "not above 0"),
    ({"blk.0.attn_q.weight": np.full((64, 64), np.nan, np.float32)}, "NaN"),
    ({"blk.0.attn_q.weight": np.ones((64, 64), np.int8)}, "blk.0.attn_q.weight is stored as I8"),
    ({"token_embd.weight": np.ones((9, 64), np.float32)}, "rows for 9"),
    ({"token_embd.weight": np.ones(64, np.float32)}, "no table of tokens"),
]


@pytest.mark.parametrize(("tensors", "says"), TENSORS, ids=[says for _, says in TENSORS])
def test_tensors_that_do_not_fit(tensors: dict[str, Any], says: str, tmp_path: Path) -> None:
    refused(
        str(write_model(tmp_path / "m.gguf", make_model("llama"), changes=Changes(tensors=tensors))), says
    )


def test_a_type_that_is_not_carried_is_named_with_its_tensor(tmp_path: Path) -> None:
    changes = Changes(kind=lambda name: Kind.TQ2_0 if "ffn_down" in name else Kind.F32)
    model = make_model("llama")
    tensors = {f"blk.{i}.ffn_down.weight": np.ones((64, 256), np.float32) for i in range(2)}
    path = write_model(tmp_path / "m.gguf", model, changes=Changes(tensors=tensors, kind=changes.kind))
    refused(str(path), "blk.0.ffn_down.weight is stored as TQ2_0", "Q4_K_M")


def test_a_vocabulary_alone(tmp_path: Path) -> None:
    model = make_model("llama")
    keys = keys_of(model.config) | byte_level_keys(small_tokenizer())
    refused(str(write_file(tmp_path / "v.gguf", keys, {})), "a vocabulary and no weights")


def test_a_token_that_would_be_cut_up_for_hours(tmp_path: Path) -> None:
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*map(str, range(319)), "a" * 1_000_000],
    }
    path = write_model(tmp_path / "m.gguf", make_model("llama"), changes=Changes(keys))
    refused(str(path), "a token has 1000000 characters, and 4096 at most")


def test_no_key_of_the_configuration_makes_transformers_fetch_or_run(tmp_path: Path) -> None:
    keys = {"general.name": "../../../etc/passwd", "llama.auto_map": "evil.py", "general.license": "x" * 50}
    refused(
        str(write_model(tmp_path / "m.gguf", make_model("llama"), changes=Changes(keys))), "llama.auto_map"
    )


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    model = make_model("llama")
    keys = keys_of(model.config) | byte_level_keys(small_tokenizer())
    write_file(tmp_path / "m.gguf", keys, tensors_of(model), split_max_tensors=8)
    found = sorted(tmp_path.glob("m-*.gguf"))
    assert [p.name for p in found] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    return found


def test_a_split_file_is_read_whole_by_its_folder_or_any_part(parts: list[Path], whole: Path) -> None:
    expected = load_model(str(whole)).model.state_dict()
    for source in (parts[0].parent, *parts):
        found = load_model(str(source)).model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda parts: parts[1].unlink(), "m-00002-of-00003.gguf is not beside it"),
        (lambda parts: shutil.copyfile(parts[0], parts[1]), "is not part 2 of 3"),
        (lambda parts: shutil.copyfile(parts[2], parts[1]), "is not part 2 of 3"),
        (lambda parts: [p.rename(p.with_name(f"x{i}.gguf")) for i, p in enumerate(parts)] and None, "--file"),
    ],
)
def test_parts_that_do_not_fit(change: Callable[[list[Path]], object], says: str, parts: list[Path]) -> None:
    change(parts)
    refused(str(parts[0].parent), says)


def test_a_part_outside_the_folder_is_not_read(
    parts: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    away = tmp_path_factory.mktemp("away") / "part"
    parts[1].rename(away)
    parts[1].symlink_to(away)
    refused(str(parts[0]), "link to a place outside")


def test_a_first_part_under_another_name(parts: list[Path]) -> None:
    parts[0].rename(parts[0].with_name("x.gguf"))
    refused(str(parts[0].with_name("x.gguf")), "one of 3 parts")


def test_a_folder_with_several_needs_a_name(whole: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf", "mmproj-a.gguf"):
        shutil.copyfile(whole, tmp_path / name)
    refused(str(tmp_path), "2 GGUF models (a.gguf, b.gguf)", "--file")
    refused(str(tmp_path), "has no file c.gguf", "a.gguf", file="c.gguf")
    for odd in ("../a.gguf", "/etc/a.gguf", "*.gguf", "a.bin"):
        refused(str(tmp_path), "not the name of a GGUF file", file=odd)
    refused(str(tmp_path / "a.gguf"), "leave --file out", file="a.gguf")
    assert examine(str(tmp_path), file="b.gguf").name == "Tiny Model"
    (tmp_path / "b.gguf").unlink()
    assert examine(str(tmp_path)).name == "Tiny Model"


def test_a_folder_of_safetensors_stays_one(whole: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    shutil.copyfile(whole, folder / "other.gguf")
    assert examine(str(folder)).gguf is None
    assert examine(str(folder), file="other.gguf").gguf is not None


def test_the_unpacked_text_goes_with_the_model(whole: Path) -> None:
    given = examine(str(whole))
    folder = given.folder
    assert (folder / "config.json").is_file()
    del given
    assert not folder.exists()
