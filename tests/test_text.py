from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import CONTROLS, KINDS, SEEN, byte_level, folder_of, sentencepiece_bpe
from tokenizers import AddedToken, Tokenizer

from paceline.runtime.detokenizer import read_decoder
from paceline.runtime.manifest import BundleError
from paceline.runtime.text.text import Text

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
REAL = ["tokenizers/gpt2", "tokenizers/llama2_fast", "tokenizers/phi-3-mini"]
REAL += ["models/stories260K", "models/babyllama105", "models/stories-sampler"]
BROKEN = "\N{REPLACEMENT CHARACTER}"
NASTY = st.sampled_from(
    [
        *CONTROLS,
        "<s>",
        "</s>",
        "<unk>",
        "<think>",
        "</think>",
        "<|im_",
        "end|>",
        "\ue0f0",
        "\ud800",
        "\x00",
        "▁",
    ]
)
TEXTS = st.lists(st.one_of(NASTY, st.text(max_size=8), st.sampled_from(SEEN)), max_size=6).map("".join)
SEEDS = st.randoms(use_true_random=False)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Text, Tokenizer]:
    """Our text and the tokenizer it was made from."""
    tokenizer = KINDS[request.param]()
    return Text.load(folder_of(tokenizer, tmp_path_factory.mktemp("bundle"))), tokenizer


@cache
def real(name: str) -> tuple[Text, Tokenizer]:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not here")
    return Text.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))


def clean(text: str) -> str:
    """What can be tokenized of it: no half characters."""
    return "".join(BROKEN if "\ud800" <= character <= "\udfff" else character for character in text)


def pieces_of(text: Text, prompt: list[int], output: list[int]) -> list[str]:
    detokenizer = text.detokenizer(prompt)
    return [*map(detokenizer.push, output), detokenizer.flush()]


def check_decoding(text: Text, tokenizer: Tokenizer, prompt: list[int], output: list[int]) -> None:
    """Pieces join to the one-shot text less the prompt's, and the one-shot text is the tokenizer's own."""
    whole, ours = tokenizer.decode(prompt + output), text.decode(prompt + output)
    by_bytes = text._bytes.rules.byte_tokens
    if not by_bytes or BROKEN not in whole:
        assert ours == whole
    pieces = pieces_of(text, prompt, output)
    before = text.detokenizer()
    shown = "".join(map(before.push, prompt))
    assert shown + "".join(pieces) == ours
    # No broken character before its time: what is out stays as it is, whatever follows.
    for cut in range(len(output)):
        assert ours.startswith(shown + "".join(pieces[: cut + 1]))


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_pieces_join_to_the_one_shot_text_for_any_tokens(
    pair: tuple[Text, Tokenizer], data: st.DataObject
) -> None:
    text, tokenizer = pair
    ids = st.lists(st.integers(0, text.vocab_size + 2), max_size=12)
    check_decoding(text, tokenizer, data.draw(ids), data.draw(ids))


@given(TEXTS, st.integers(0, 30))
@settings(max_examples=50, deadline=None)
def test_pieces_join_to_the_one_shot_text_for_real_text(
    pair: tuple[Text, Tokenizer], content: str, cut: int
) -> None:
    text, tokenizer = pair
    ids = text.encode(content)
    check_decoding(text, tokenizer, ids[:cut], ids[cut:])


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
@given(SEEDS, st.integers(0, 8), st.integers(0, 16))
@settings(max_examples=25, deadline=None)
def test_real_tokenizers_decode_piece_by_piece(name: str, random: Random, before: int, after: int) -> None:
    text, tokenizer = real(name)

    def draw(count: int) -> list[int]:
        return [random.randrange(text.vocab_size + 1) for _ in range(count)]

    check_decoding(text, tokenizer, draw(before), draw(after))


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
@given(TEXTS)
@settings(max_examples=25, deadline=None)
def test_real_tokenizers_encode_as_they_did_before_renaming(name: str, content: str) -> None:
    text, tokenizer = real(name)
    check_encoding(text, tokenizer, content)


@given(TEXTS)
@settings(max_examples=50, deadline=None)
def test_allowed_specials_give_the_ids_of_the_original(pair: tuple[Text, Tokenizer], content: str) -> None:
    check_encoding(*pair, content)


def check_encoding(text: Text, tokenizer: Tokenizer, content: str) -> None:
    content = clean(content)
    assert text.encode(content, allow_special=True) == tokenizer.encode(content).ids
    assert text.encode(content, add_bos=False, allow_special=True) == (
        tokenizer.encode(content, add_special_tokens=False).ids
    )
    unknown = text.token_id("<unk>")
    typed = set(text.encode(content, add_bos=False)) & text.control_ids
    assert typed <= {unknown}


@given(
    st.text(alphabet=st.characters(exclude_characters="<>|[]/\ue0f0", exclude_categories=["Cs"]), max_size=40)
)
@settings(max_examples=40, deadline=None)
def test_ordinary_text_gives_the_ids_of_the_original(pair: tuple[Text, Tokenizer], content: str) -> None:
    text, tokenizer = pair
    assert text.encode(content) == tokenizer.encode(content).ids


def test_a_typed_control_token_is_ordinary_text(pair: tuple[Text, Tokenizer]) -> None:
    text, _ = pair
    for control in text.control_ids:
        spelled = text.token(control)
        assert spelled is not None
        typed = text.encode(f"a {spelled} b", add_bos=False)
        assert control not in typed or spelled == "<unk>"
        assert control in text.encode(f"a {spelled} b", allow_special=True)  # the negative control
        if "<unk>" not in spelled:
            assert spelled in text.decode(typed)


def test_a_control_token_that_merges_could_make_is_still_not_made(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["Ġdog", "time"])  # both are ordinary words of the vocabulary too
    folder = folder_of(tokenizer, tmp_path)
    text = Text.load(folder)
    word = tokenizer.token_to_id("time")
    assert word in text.special_ids
    assert word in tokenizer.encode("a time").ids or word in tokenizer.encode("time").ids
    assert word not in text.encode("time and time again, sometimes")
    assert text.decode(text.encode("time and time again")) == "time and time again"


def test_a_character_comes_out_only_when_it_is_whole() -> None:
    text = _text(byte_level)
    ids = [i for byte in "😀é".encode() for i in [text.token_id(_letter(byte))]]
    pieces = pieces_of(text, [], [i for i in ids if i is not None])
    assert pieces == ["", "", "", "😀", "", "é", ""]


def test_decoding_each_token_by_itself_breaks_characters() -> None:
    """The negative control of the test above."""
    text = _text(byte_level)
    ids = [text.token_id(_letter(byte)) for byte in "😀".encode()]
    assert "".join(text.decode([i]) for i in ids if i is not None) == BROKEN * 4


def test_bytes_that_form_no_character_come_out_in_the_end() -> None:
    text = _text(sentencepiece_bpe)
    first, second, line = (text.token_id(t) for t in ("<0xE2>", "<0x82>", "<0x0A>"))
    assert first is not None
    assert second is not None
    assert line is not None
    assert pieces_of(text, [], [first, second]) == ["", "", BROKEN]
    assert pieces_of(text, [], [first, second, line]) == ["", "", BROKEN + "\n", ""]
    # A prompt that ends inside a character: the answer begins with the whole character.
    rest = text.token_id("<0xAC>")
    assert rest is not None
    assert pieces_of(text, [first, second], [rest]) == ["€", ""]


def test_the_leading_space_belongs_to_the_answer_unless_the_text_begins_there() -> None:
    text = _text(sentencepiece_bpe)
    word = text.encode("dog", add_bos=False)
    assert "".join(pieces_of(text, [], word)) == "dog"
    assert "".join(pieces_of(text, [1], word)) == "dog"
    assert "".join(pieces_of(text, text.encode("The"), word)) == " dog"


def test_special_tokens_and_ids_beyond_the_vocabulary_show_nothing() -> None:
    text = _text(byte_level)
    end = text.token_id("<|im_end|>")
    assert end is not None
    assert text.decode([end, text.vocab_size, text.vocab_size + 10**6, 2**40, -1]) == ""
    think = text.token_id("<think>")
    assert think is not None
    assert text.decode([think]) == "<think>"


def test_a_token_costs_the_same_however_long_the_text_is() -> None:
    text = _text(byte_level)
    ids = text.encode(SEEN[0]) * 40
    detokenizer = text.detokenizer(ids)
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        for token in ids:
            detokenizer.push(token)
        seconds.append(time.perf_counter() - start)
    assert min(seconds[6:]) < 5 * min(seconds[:6]) + 0.01


def test_raw_text_follows_the_tokenizers_own_beginning() -> None:
    llama, gpt = _text(sentencepiece_bpe), _text(byte_level)
    assert llama.bos == "<s>"
    assert gpt.bos is None
    assert llama.encode("a")[0] == 1
    assert llama.encode("a", add_bos=False)[0] != 1
    assert llama.encode("") == [1]
    assert gpt.encode("") == []
    with pytest.raises(ValueError, match="beginning"):
        gpt.encode("a", add_bos=True)


def test_facts_of_a_tokenizer() -> None:
    text, other = _text(byte_level), _text(sentencepiece_bpe)
    assert text.vocab_size == byte_level().get_vocab_size()
    assert text.token_id("nothing of the kind") is None
    assert text.token(10**9) is None
    assert text.token(-1) is None
    assert text.token_id("<|im_end|>") in text.special_ids <= text.control_ids
    assert text.token_id("    ") not in text.control_ids
    assert text.fingerprint == _text(byte_level).fingerprint != other.fingerprint
    assert len(text.fingerprint) == 64


def test_tokens_that_end_an_answer_or_stand_in_the_template_are_control_tokens(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["[stop]", "<call>", "dog"])
    plain = Text.load(folder_of(tokenizer, tmp_path / "plain"))
    stop, call, dog = (tokenizer.token_to_id(t) for t in ("[stop]", "<call>", "dog"))
    assert not {stop, call, dog} & plain.control_ids
    folder = folder_of(tokenizer, tmp_path / "chat", "{{ '<call>' }} dog")
    (folder / "generation.json").write_text(json.dumps({"eos_ids": [stop]}))
    text = Text.load(folder)
    assert {stop, call, dog} & text.control_ids == {stop, call}
    assert text.eos == "[stop]"
    assert not {stop, call} & set(text.encode("[stop] <call>"))
    assert text.fingerprint == plain.fingerprint


def test_a_whole_word_token_keeps_its_rule(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("[END]", single_word=True, normalized=False)])
    text = Text.load(folder_of(tokenizer, tmp_path))
    for content in ("a [END] b", "a[END]b", "[END]", "x[END] y", "é[END]"):
        assert text.encode(content, allow_special=True) == tokenizer.encode(content).ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["normalized", "lstrip", "rstrip", "single_word"])
@given(st.lists(st.sampled_from(["[X]", "[Y]", " ", "  ", "dog", "The ", "\n", "x", "é", "<s>"]), max_size=8))
@settings(max_examples=25, deadline=None)
def test_added_tokens_keep_their_rules(kind: str, rule: str, parts: list[str]) -> None:
    text, tokenizer = _with_rule(kind, rule)
    content = "".join(parts)
    assert text.encode(content, allow_special=True) == tokenizer.encode(content).ids
    assert not set(text.encode(content, add_bos=False)) & {text.token_id("[X]"), text.token_id("[Y]")}


@cache
def _with_rule(kind: str, rule: str) -> tuple[Text, Tokenizer]:
    tokenizer = KINDS[kind]()
    tokenizer.add_special_tokens([AddedToken("[X]", **{"normalized": False, rule: True})])
    tokenizer.add_tokens([AddedToken("[Y]", **{"normalized": False, rule: True})])
    with tempfile.TemporaryDirectory() as folder:
        return Text.load(folder_of(tokenizer, Path(folder))), tokenizer


def test_a_tokenizer_never_cuts_or_fills_a_prompt(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=3)
    text = Text.load(folder_of(tokenizer, tmp_path))
    assert text.decode(text.encode(SEEN[0])) == SEEN[0]
    assert len(text.encode("a")) == 1


def _damage(change: Callable[[dict[str, object]], object]) -> bytes:
    content = json.loads(byte_level().to_str())
    change(content)
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"model": 3}',
        b'{"model": {"type": "BPE", "vocab": [], "merges": []}}',
        _damage(lambda c: c["model"]["vocab"].update(a=4_000_000_000)),  # type: ignore[index]
        _damage(lambda c: c["model"]["vocab"].update(a=-1)),  # type: ignore[index]
        _damage(lambda c: c["model"]["vocab"].update(a="x")),  # type: ignore[index]
        _damage(lambda c: c["model"]["vocab"].update(a=0)),  # type: ignore[index]
        _damage(lambda c: c["model"].update(vocab=3)),  # type: ignore[attr-defined]
        _damage(lambda c: c["model"].update(merges=[["a"]])),  # type: ignore[attr-defined]
        _damage(lambda c: c["added_tokens"].append({})),  # type: ignore[attr-defined]
        _damage(lambda c: c["added_tokens"].append({"id": 9999, "content": "<x>"})),  # type: ignore[attr-defined]
        _damage(lambda c: c["added_tokens"][-1].update(id=4_000_000_000)),  # type: ignore[index]
        _damage(lambda c: c.update(decoder={"type": "WordPiece", "prefix": 7, "cleanup": True})),
        _damage(lambda c: c.update(decoder={"type": "Nonsense"})),
        _damage(lambda c: c.update(decoder=[])),
    ],
    ids=range(20),
)
def test_a_damaged_tokenizer_is_one_clear_line(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(raw)
    with pytest.raises(BundleError) as error:
        Text.load(tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_missing_tokenizer_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        Text.load(tmp_path)
    folder_of(byte_level(), tmp_path)
    (tmp_path / "generation.json").write_text("{")
    with pytest.raises(BundleError, match=r"generation\.json is damaged"):
        Text.load(tmp_path)


def test_decoders_that_look_at_more_than_one_token_are_refused() -> None:
    for kind in ("BPEDecoder", "CTC"):
        with pytest.raises(BundleError, match="not supported"):
            read_decoder({"type": kind})
    pieces = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    with pytest.raises(BundleError, match="'WordPiece' is not supported here: use a model") as error:
        read_decoder({"type": "Sequence", "decoders": [pieces, {"type": "Fuse"}]})
    assert "\n" not in str(error.value)
    late = {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}
    with pytest.raises(BundleError, match="not supported"):
        read_decoder({"type": "Sequence", "decoders": [{"type": "Fuse"}, late]})


def test_a_tokenizer_without_decoder_puts_spaces_between_its_words(tmp_path: Path) -> None:
    from tokenizers import models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = Text.load(folder_of(tokenizer, tmp_path))
    assert text.decode([0, 1, 9, 0]) == tokenizer.decode([0, 1, 9, 0]) == "a b a"


@cache
def _text(make: Callable[[], Tokenizer]) -> Text:
    with tempfile.TemporaryDirectory() as folder:
        return Text.load(folder_of(make(), Path(folder)))


def _letter(byte: int) -> str:
    from paceline.runtime.detokenizer import byte_alphabet

    return next(letter for letter, value in byte_alphabet().items() if value == byte)
