"""A tokenizer file can neither end the process nor keep it busy."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from paceline.export.errors import ExportError
from paceline.export.tokenizer_files import write_tokenizer
from paceline.export.tokens import token_ids
from paceline.runtime.detokenizer import read_decoder
from paceline.runtime.manifest import BundleError
from paceline.runtime.text.stream import TokenBytes
from paceline.runtime.text.text import Text
from tests.tiny_tokenizers import byte_level

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def folder_with(folder: Path, **changes: Any) -> Path:
    file = json.loads(byte_level().to_str()) | changes
    (folder / "tokenizer.json").write_text(json.dumps(file))
    return folder


def split(pattern: str) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [step, BYTES]}


def replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def charsmap(raw: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()}


def template(*pieces: str, ids: int = 1) -> dict[str, Any]:
    """A post-processor that writes `T`, a text, or `B`, as many ids."""
    made = {"T": {"Sequence": {"id": "A", "type_id": 0}}, "B": {"SpecialToken": {"id": "<b>", "type_id": 0}}}
    return {
        "type": "TemplateProcessing",
        "single": [made[piece] for piece in pieces],
        "pair": [made["T"], {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<b>": {"id": "<b>", "ids": [0] * ids, "tokens": ["a"] * ids}},
    }


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"post_processor": template(*"B" * 100, "T")}, "adds 100 tokens"),
        ({"post_processor": template("B", "T", ids=100)}, "adds 100 tokens"),
        ({"post_processor": template(*"T" * 2000)}, "2e+03 times longer"),
        (
            {"post_processor": {"type": "Sequence", "processors": [template(*"T" * 40)] * 2}},
            "1.6e+03 times longer",
        ),
        ({"post_processor": {"type": "Strange"}}, "'Strange'"),
        ({"pre_tokenizer": split(r"(a+)+$")}, "Onig"),
        ({"normalizer": charsmap(b"\xff\xff\xff\x7fabcd")}, "not inside it"),
        ({"normalizer": charsmap(b"\x03\0\0\0abc")}, "not inside it"),
        ({"normalizer": charsmap((4).to_bytes(4, "little") + bytes(4) + b"x" * 300 + b"\0")}, "300 bytes"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 100}}, "puts in 100 characters"),
        ({"normalizer": replace("a", "b" * 65)}, "puts in 65 characters"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "a" * 32)] * 3}},
            "3.28e+04 times longer",
        ),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100}}, "100 steps"),
        ({"pre_tokenizer": split("a" * 9000)}, "pattern of 9000"),
        ({"normalizer": {"type": "Strange"}}, "'Strange'"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 3}}, "cannot be read"),
    ],
)
def test_a_file_that_would_break_or_block_is_refused(
    tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    with pytest.raises(BundleError) as caught:
        Text.load(folder_with(tmp_path, **changes))
    assert word in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_panic_over_one_text_is_an_error_of_that_text_alone(tmp_path: Path) -> None:
    text = Text.load(folder_with(tmp_path, pre_tokenizer=split(r"(z+)+$")))
    with pytest.raises(BundleError, match="the tokenizer failed"):
        text.encode("z" * 40 + "!")
    assert text.decode(text.encode("fizz")) == "fizz"


def test_export_says_it_in_one_line_too(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, normalizer=charsmap(b"\xff\xff\xff\x7fabcd"))
    with pytest.raises(ExportError, match=r"tokenizer.* cannot be read"):
        write_tokenizer(folder, tmp_path)


def test_export_says_so_where_a_text_of_the_user_breaks_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(
        str(folder_with(tmp_path, pre_tokenizer=split(r"(z+)+$")) / "tokenizer.json")
    )
    with pytest.raises(ExportError, match="the tokenizer fails on the text"):
        token_ids(tokenizer, "z" * 40 + "!")
    assert tokenizer.decode(token_ids(tokenizer, "fizz")) == "fizz"


def test_steps_of_real_tokenizers_are_let_in(tmp_path: Path) -> None:
    steps = [replace("``", '"'), {"type": "NFKC"}, {"type": "Lowercase"}, replace(" ", "\u2581")]
    text = Text.load(folder_with(tmp_path, normalizer={"type": "Sequence", "normalizers": steps}))
    assert text.decode(text.encode("A")) == "a"


def test_byte_tokens_before_metaspace_decode_as_the_library_does() -> None:
    decoder = {
        "type": "Sequence",
        "decoders": [
            {"type": "ByteFallback"},
            {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        ],
    }
    vocab = ["\u2581a", "\u2581b", "c", "<0xE4>", "<0xB8>", "<0xAD>", "<0x41>", "\u2581"]
    file = {
        "version": "1.0",
        "decoder": decoder,
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(vocab)}, "merges": []},
    }
    library = Tokenizer.from_str(json.dumps(file))
    spell = dict(enumerate(vocab)).get
    for ids in ([0, 1, 2], [7, 0, 7], [3, 4, 5, 0], [6, 1], [2, 3, 4, 5, 7, 6]):
        ours = Text.__new__(Text)
        ours._bytes = TokenBytes(read_decoder(decoder), spell, ())
        assert ours.decode(ids) == library.decode(ids)
