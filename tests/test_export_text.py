"""The text side of a bundle is what transformers makes of a folder, and a session can use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from paceline.export.errors import ExportError
from paceline.export.generation_settings import generation_of
from paceline.export.order import Order
from paceline.export.pipeline import export_bundle
from paceline.export.report import Report
from paceline.export.text_check import open_text, tokens_beyond
from paceline.export.tokenizer_files import chat_template, write_text_files, write_tokenizer
from paceline.runtime.bundle.generation import Generation, Phrase, read_generation
from paceline.runtime.loading import load
from paceline.runtime.request import Sampling
from paceline.runtime.template.chat_template import ChatTemplate
from paceline.runtime.text.text import Text
from tests.small_checkpoints import WORDS, add_json, small_tokenizer, write_checkpoint

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
PLAIN = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
TALK = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat  on"},
    {"role": "user", "content": " the mat"},
]


def write_tokenizer_file(folder: Path, tokenizer: Tokenizer | None = None, **config: Any) -> None:
    add_json(folder, "config.json", model_type="llama", vocab_size=320)
    (tokenizer or small_tokenizer()).save(str(folder / "tokenizer.json"))
    if config:
        add_json(folder, "tokenizer_config.json", **config)


def same_ids(folder: Path, out: Path) -> list[int]:
    """Ids of a chat, which must be those that transformers gives."""
    out.mkdir()
    write_text_files(folder, out)
    text, notes = open_text(out)
    assert notes == []
    ours = text.encode_marked(ChatTemplate.load(out, text).render(TALK, add_generation_prompt=True))
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        TALK, add_generation_prompt=True, return_dict=False
    )
    assert ours == theirs
    return ours


def test_tokens_that_only_the_configuration_names_are_tokens(tmp_path: Path) -> None:
    (folder := tmp_path / "model").mkdir()
    write_tokenizer_file(
        folder,
        tokenizer_class="PreTrainedTokenizerFast",
        eos_token="<|im_end|>",
        chat_template=CHATML,
        added_tokens_decoder={
            "300": {"content": "<|im_start|>", **PLAIN},
            "301": {"content": "<|im_end|>", **PLAIN},
        },
    )
    assert same_ids(folder, tmp_path / "out").count(300) == 4


def test_so_are_those_of_the_special_tokens_map(tmp_path: Path) -> None:
    (folder := tmp_path / "model").mkdir()
    write_tokenizer_file(
        folder,
        tokenizer_class="PreTrainedTokenizerFast",
        chat_template="{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    )
    add_json(folder, "special_tokens_map.json", bos_token="<s>", eos_token={"content": "</s>", **PLAIN})
    ids = same_ids(folder, tmp_path / "out")
    assert (ids[0], ids[-1]) == (0, 1)
    assert read_generation(tmp_path / "out" / "generation.json").eos_ids == [1]


@pytest.mark.parametrize("legacy", [False, True])
def test_the_class_that_is_named_decides_how_text_is_prepared(tmp_path: Path, legacy: bool) -> None:
    blank = "\u2581"
    pieces = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    pieces.normalizer = normalizers.Sequence([normalizers.Prepend(blank), normalizers.Replace(" ", blank)])
    pieces.decoder = decoders.Sequence(
        [decoders.Replace(blank, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=310, special_tokens=special, show_progress=False)
    pieces.train_from_iterator(WORDS.split(), trainer)
    pieces.add_special_tokens([AddedToken("<|user|>", special=True, normalized=False)])
    (folder := tmp_path / "model").mkdir()
    write_tokenizer_file(
        folder,
        pieces,
        tokenizer_class="LlamaTokenizer",
        legacy=legacy,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template="{% for m in messages %}<|user|>{{ m.content }}</s>{% endfor %}<|user|>",
    )
    same_ids(folder, tmp_path / "out")


def test_a_tokenizer_json_alone_is_taken_as_it_is(tmp_path: Path) -> None:
    write_tokenizer_file(tmp_path)
    (out := tmp_path / "out").mkdir()
    write_tokenizer(tmp_path, out)
    assert Text.load(out).encode(WORDS) == small_tokenizer().encode(WORDS).ids


def test_files_that_the_configuration_names_are_not_opened(tmp_path: Path) -> None:
    (folder := tmp_path / "model").mkdir()
    (secret := tmp_path / "secret.json").write_text(json.dumps({"TOP-SECRET": 0}))
    write_tokenizer_file(
        folder,
        tokenizer_class="PreTrainedTokenizerFast",
        tokenizer_file=str(secret),
        vocab_file=str(secret),
        vocab=str(secret),
        init_inputs=[str(secret)],
        fast_tokenizer_files=["tokenizer.0.0.json", "../secret.json"],
    )
    write_text_files(folder, tmp_path)
    assert "TOP-SECRET" not in (tmp_path / "tokenizer.json").read_text()


def test_a_chat_template_is_found_wherever_it_is_kept(tmp_path: Path) -> None:
    def found() -> str | None:
        (out := tmp_path / "out").mkdir(exist_ok=True)
        return chat_template(tmp_path, write_tokenizer(tmp_path, out))

    write_tokenizer_file(tmp_path)
    assert found() is None
    add_json(tmp_path, "chat_template.json", chat_template="processor")
    assert found() == "processor"
    add_json(tmp_path, "tokenizer_config.json", chat_template="plain")
    assert found() == "plain"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]
    add_json(tmp_path, "tokenizer_config.json", chat_template=named)
    assert found() == "named"
    add_json(tmp_path, "tokenizer_config.json", chat_template={"tool_use": "tools", "default": "mapped"})
    assert found() == "mapped"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert found() == "file"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert found() == "file"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"eos_token_id": 7}, Generation(eos_ids=[7])),
        ({"eos_token_id": [7, 9]}, Generation(eos_ids=[7, 9])),
        ({}, Generation(eos_ids=[3])),
        ({"eos_token_id": 7, "do_sample": False, "temperature": 0.6}, Generation(eos_ids=[7])),
        ({"eos_token_id": 7, "do_sample": True, "temperature": 1e-5}, Generation(eos_ids=[7])),
        (
            {
                "eos_token_id": 7,
                "do_sample": True,
                "top_p": 0.9,
                "repetition_penalty": 1.1,
                "presence_penalty": 0.3,
            },
            Generation(eos_ids=[7], temperature=1.0, top_p=0.9, repetition_penalty=1.1, presence_penalty=0.3),
        ),
        ({"do_sample": True, "top_k": -1}, Generation(eos_ids=[3], temperature=1.0)),
        ({"do_sample": True, "top_p": 0.0}, Generation(eos_ids=[3], temperature=1.0, top_k=1)),
        ({"do_sample": True, "top_p": 1.5}, Generation(eos_ids=[3], temperature=1.0)),
        (
            {"suppress_tokens": [4, 5], "begin_suppress_tokens": [6], "min_new_tokens": 8},
            Generation(eos_ids=[3], banned=[4, 5], not_before={6: 1, 3: 8}),
        ),
        (
            {
                "bad_words_ids": [[4], [5, 6], [3]],
                "sequence_bias": [[[7], -2.0], [[8, 9], 1.5]],
                "no_repeat_ngram_size": 4,
            },
            Generation(
                eos_ids=[3],
                no_repeat_ngram=4,
                phrases=[Phrase([4]), Phrase([5, 6]), Phrase([7], -2.0), Phrase([8, 9], 1.5)],
            ),
        ),
    ],
)
def test_generation_settings_follow_the_models_authors(
    tmp_path: Path, fields: dict[str, Any], expected: Generation
) -> None:
    add_json(tmp_path, "config.json", eos_token_id=3)
    add_json(tmp_path, "generation_config.json", **fields)
    assert generation_of(tmp_path, 320, None, None, None) == (expected, [])


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"do_sample": True, "temperature": float("inf")}, "temperature is 'inf'"),
        ({"do_sample": True, "temperature": 5000.0}, "temperature is 5000.0"),
        ({"do_sample": True, "min_p": "much"}, "min_p is 'much'"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram is -2"),
        ({"sequence_bias": [[[7], "x"]]}, "sequence_bias holds"),
        ({"num_beams": 4}, "num_beams is not supported"),
        ({"stop_strings": ["END"]}, "stop_strings is not supported"),
        ({"do_sample": True, "typical_p": 0.9}, "typical_p is not supported"),
        ({"forced_eos_token_id": 1}, "forced_eos_token_id is not supported"),
        ({"min_length": 9}, "min_length is not supported"),
        ({"max_new_tokens": 9}, "max_new_tokens is not supported"),
        ({"bad_words_ids": [[5, 400]]}, "bad_words_ids holds [5, 400]"),
        ({"bad_words_ids": [5]}, "bad_words_ids holds 5"),
        ({"sequence_bias": [[[5, 400], -3.0]]}, "sequence_bias holds [[5, 400], -3.0]"),
        ({"sequence_bias": [[[5], True]]}, "sequence_bias holds [[5], True]"),
        ({"sequence_bias": {"(5,)": -3.0}}, "sequence_bias holds"),
        ({"suppress_tokens": [5, "</s>"]}, "suppress_tokens holds </s>"),
        ({"begin_suppress_tokens": "</s>"}, "begin_suppress_tokens holds </s>"),
        ({"min_new_tokens": "5"}, "min_new_tokens holds 5"),
        ({"do_sample": True, "temperature": -1.0}, "temperature holds -1.0"),
        ({"eos_token_id": "</s>"}, "eos_token_id holds </s>"),
    ],
)
def test_what_cannot_be_followed_is_left_out_and_named(
    tmp_path: Path, fields: dict[str, Any], word: str
) -> None:
    add_json(tmp_path, "generation_config.json", **fields)
    made, (note,) = generation_of(tmp_path, 320, 1, "<s>", "</s>")
    assert word in note
    assert made.phrases == []
    assert made.eos_ids == [1]
    assert made.temperature in (0.0, 1.0)


@pytest.mark.parametrize("said", [True, 1, "true"])
def test_whatever_transformers_takes_for_sampling_is_sampling(tmp_path: Path, said: object) -> None:
    add_json(tmp_path, "generation_config.json", do_sample=said, temperature=0.5)
    assert generation_of(tmp_path, 320, 1, None, None)[0].temperature == 0.5


def test_the_tokenizers_end_joins_the_configured_ones(tmp_path: Path) -> None:
    add_json(tmp_path, "generation_config.json", eos_token_id=[7, 9])
    assert generation_of(tmp_path, 320, 9, None, None)[0].eos_ids == [7, 9]
    assert generation_of(tmp_path, 320, 11, None, None)[0].eos_ids == [7, 9, 11]
    assert generation_of(tmp_path, 10, 11, None, None)[0].eos_ids == [7, 9]


def test_a_tokenizer_that_the_runtime_cannot_decode_is_refused(tmp_path: Path) -> None:
    pieces = Tokenizer(models.BPE({"[UNK]": 0, "the</w>": 1}, [], unk_token="[UNK]"))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
    write_tokenizer_file(tmp_path, pieces, tokenizer_class="PreTrainedTokenizerFast")
    (out := tmp_path / "out").mkdir()
    write_text_files(tmp_path, out)
    with pytest.raises(ExportError, match="BPEDecoder") as caught:
        open_text(out)
    assert str(out) not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "word", "kept"),
    [
        ("{% for m in messages %}{{ m.content }}", "cannot be read", False),
        ("{% for m in messages %}{{ m.content | urlencode }}{% endfor %}", "urlencode", None),
        ("{{ raise_exception('not today') }}", "not today", True),
    ],
)
def test_a_template_that_does_not_work_is_said_and_raw_text_goes_on(
    tmp_path: Path, template: str, word: str, kept: bool | None
) -> None:
    write_tokenizer_file(tmp_path, chat_template=template)
    (out := tmp_path / "out").mkdir()
    write_text_files(tmp_path, out)
    text, (note,) = open_text(out)
    assert word in note
    assert "raw text runs" in note
    assert text.encode("the cat")
    if kept is not None:
        assert (out / "chat_template.jinja").exists() is kept


def test_tokens_without_a_row_are_said(tmp_path: Path) -> None:
    tokenizer = small_tokenizer(extra=tuple(f"<spare{i}>" for i in range(20)))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    write_tokenizer_file(tmp_path, tokenizer, chat_template=CHATML)
    (out := tmp_path / "out").mkdir()
    write_text_files(tmp_path, out)
    text, _ = open_text(out)
    assert tokens_beyond(out, text, 340, WORDS) == []
    (note,) = tokens_beyond(out, text, 318, WORDS)
    assert "every chat will be refused" in note
    assert "vocabulary of 318" in note
    (out / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (note,) = tokens_beyond(out, text, 318, WORDS)
    assert "4 tokens of the tokenizer, from '<spare" in note
    with pytest.raises(ExportError, match="belongs to another model"):
        tokens_beyond(out, text, 200, WORDS)


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A bundle whose authors forbid something and ask for one thing that is not there."""
    place = tmp_path_factory.mktemp("ruled")
    folder = write_checkpoint(place / "model")
    add_json(folder, "generation_config.json", eos_token_id=1, no_repeat_ngram_size=1, num_beams=3)
    return export_bundle(Order(str(folder)), place / "bundle")


def test_rules_hold_for_every_choice_and_notes_are_in_the_report(ruled: Report) -> None:
    assert ruled.notes == ("generation_config.json: num_beams is not supported here and was left out",)
    told = []
    for drafter in ("none", "lookup"):
        with load(ruled.folder, drafter=drafter, cache="fp32") as session:
            for sampling in (None, Sampling()):
                events = session.generate("the cat the cat", max_tokens=24, sampling=sampling)
                told.append([e.token for e in events if e.token is not None])
    assert told.count(told[0]) == 4
    assert len(set(told[0])) == len(told[0])
