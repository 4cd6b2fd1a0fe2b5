"""The tokenizer of a GGUF file gives the ids of the tokenizer that it was made from."""
# ruff: noqa: E402  (what the tests need may be absent)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from gguf_files import Changes, byte_level_keys, make_model, write_file, write_model
from small_checkpoints import small_tokenizer
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from paceline.export.candidate import examine
from paceline.export.errors import ExportError
from paceline.export.gguf.reader import read_gguf
from paceline.export.gguf.text import write_gguf_text
from paceline.export.gguf.vocabulary import Vocabulary, read_vocabulary

pytestmark = pytest.mark.export
SHARED = Path(__file__).parents[2] / "shared/data"
ODD = (
    "  two spaces, a\ttab\n\n\nand lines \r\n  it's we'LL 12345 3.14 ½ ²",
    "naïve café 北京欢迎你 — “quotes” 🙂👩‍👩‍👧 e\u0301 ﬁ",
    " leading", "trailing  ", "", " ", "\n", "x" * 300,
    "<s> and </s> <|user|> hi<|end|>\n <|assistant|>  ok <unk> <|endoftext|>",
)  # fmt: skip


def vocabulary_of(keys: dict[str, Any], place: Path, architecture: str = "llama") -> Vocabulary:
    path = write_file(place / "v.gguf", {"general.architecture": architecture} | keys, {})
    return read_vocabulary(read_gguf(path))


def sentencepiece_keys(tokenizer: Tokenizer, **more: Any) -> dict[str, Any]:
    """As the converter writes a SentencePiece model: bytes are 3 to 258, then the pieces by falling score.

    In the models of Llama runs of spaces have the lowest score of all.
    """
    added = tokenizer.get_added_tokens_decoder()
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    special = {i: 3 if token.special else 4 for i, token in added.items()}
    kinds = [2 if i == 0 else special.get(i, 6 if i < 259 else 1) for i in range(len(tokens))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [
            0.0 if i < 259 else -1e9 if set(token) == {"▁"} and i < 29000 else float(259 - i)
            for i, token in enumerate(tokens)
        ],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | {f"tokenizer.ggml.{name}": value for name, value in more.items()}


def texts() -> list[str]:
    real = SHARED / "corpora"
    found = [path.read_text(encoding="utf-8")[:150_000] for path in sorted(real.glob("*.txt"))]
    return [*ODD, *(line for text in found for line in text.split("\n\n"))]


def compare(ours: Tokenizer, theirs: Tokenizer) -> int:
    count = 0
    for text in texts():
        a, b = ours.encode(text).ids, theirs.encode(text).ids
        assert a == b, text[:200]
        assert ours.decode(a) == theirs.decode(b)
        count += len(a)
    return count


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gpt2", "llama2_fast", "phi-3-mini"])
def test_real_tokenizers_come_back(name: str, tmp_path: Path) -> None:
    if not (SHARED / "tokenizers" / name).is_dir():
        pytest.skip("no shared tokenizers")
    theirs = Tokenizer.from_file(str(SHARED / "tokenizers" / name / "tokenizer.json"))
    if name == "gpt2":
        made = vocabulary_of(byte_level_keys(theirs), tmp_path, "gpt2")
    else:
        begins = {"add_bos_token": False} if name == "phi-3-mini" else {}
        architecture = "phi3" if name == "phi-3-mini" else "llama"
        made = vocabulary_of(sentencepiece_keys(theirs, **begins), tmp_path, architecture)
    assert compare(made.tokenizer, theirs) > 100_000


WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize(
    ("pre", "regex"),
    [
        ("smollm", None),
        ("llama-bpe", WORDS + r"\p{N}{1,3}" + REST),
        ("qwen2", WORDS + r"\p{N}" + REST),
    ],
)
def test_text_is_cut_as_the_file_says(pre: str, regex: str | None, tmp_path: Path) -> None:
    theirs = small_tokenizer(" ".join(f"12{i} 345 Hello's it's re-{i}" for i in range(9)), ("<think>",))
    cut: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if regex is None else []
    if regex is not None:
        cut = [pre_tokenizers.Split(Regex(regex), behavior="isolated")]
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [*cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)]
    )
    if pre == "qwen2":
        theirs.normalizer = normalizers.NFC()
    keys = byte_level_keys(theirs, pre, **{"ggml.add_bos_token": False})
    ours = vocabulary_of(keys, tmp_path).tokenizer
    for text in ("12345 Hello's  67 it's\n\n re-5 <think>345</think>", "<s>12 3</s> x", *ODD[:4]):
        assert ours.encode(text).ids == theirs.encode(text).ids


@pytest.mark.parametrize(
    ("keys", "frame"),
    [
        ({}, ([], [])),
        ({"tokenizer.ggml.add_bos_token": True}, ([0], [])),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, ([0], [1])),
        ({"tokenizer.ggml.pre": "llama-bpe"}, ([0], [])),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, ([], [])),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None}, ([], [])),
    ],
)
def test_the_frame_of_a_text_is_llama_cpps(
    keys: dict[str, Any], frame: tuple[list[int], list[int]], tmp_path: Path
) -> None:
    made = vocabulary_of(byte_level_keys(small_tokenizer()) | keys, tmp_path)
    ids = made.tokenizer.encode("the cat").ids
    plain = made.tokenizer.encode("the cat", add_special_tokens=False).ids
    assert plain
    assert ids == [*frame[0], *plain, *frame[1]]


def test_ends_are_those_that_are_named_and_those_that_llama_cpp_knows(tmp_path: Path) -> None:
    theirs = small_tokenizer()
    theirs.add_special_tokens(["<|eot_id|>", "<|other|>", "<|im_end|>"])
    ids = theirs.token_to_id
    keys = byte_level_keys(theirs) | {"tokenizer.ggml.eot_token_id": ids("<|other|>")}
    assert vocabulary_of(keys, tmp_path).ends == [1, ids("<|other|>"), ids("<|eot_id|>"), ids("<|im_end|>")]


def test_the_text_side_of_a_bundle(tmp_path: Path) -> None:
    keys = {"tokenizer.chat_template": "{{ messages[0].content }}", "tokenizer.ggml.add_bos_token": True}
    path = write_model(tmp_path / "m.gguf", make_model("llama"), changes=Changes(keys))
    given = examine(str(path))
    out = tmp_path / "out"
    out.mkdir()
    assert given.gguf is not None
    tokenizer, notes = write_gguf_text(given.gguf, out)
    assert notes == []
    assert (out / "chat_template.jinja").read_text() == keys["tokenizer.chat_template"]
    said = json.loads((out / "generation.json").read_text())
    assert (said["eos_ids"], said["bos_token"], said["eos_token"]) == ([1], "<s>", "</s>")
    written = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert written.encode("the cat").ids == [0, *small_tokenizer().encode("the cat").ids]
    assert written.encode("the cat").ids == tokenizer.encode("the cat").ids
    assert {token.content for token in written.get_added_tokens_decoder().values()} >= {"<s>", "</s>"}
    assert given.gguf.notes == ()
    bare = examine(str(write_model(tmp_path / "bare.gguf", make_model("llama"))))
    assert bare.gguf is not None
    assert "no chat template" in bare.gguf.notes[0]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"tokenizer.ggml.model": "bert"}, "of the kind 'bert'"),
        ({"tokenizer.ggml.model": None}, "of the kind 'None'"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "'unheard-of'"),
        ({"tokenizer.ggml.pre": None}, "cuts text"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "two of its tokens are 'a'"),
        ({"tokenizer.ggml.tokens": None}, "no vocabulary"),
        ({"tokenizer.ggml.token_type": [1]}, "one number for each token"),
        ({"tokenizer.ggml.merges": ["abc"]}, "not pairs"),
        ({"tokenizer.ggml.merges": ["unheard of"]}, "cannot be built"),
    ],
)
def test_a_tokenizer_that_cannot_be_carried_is_refused(
    keys: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=says) as refusal:
        vocabulary_of(byte_level_keys(small_tokenizer()) | keys, tmp_path)
    assert "\n" not in str(refusal.value)
