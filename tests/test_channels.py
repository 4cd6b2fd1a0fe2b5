"""A model with channels thinks in one and answers in another; only the answer is text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from paceline.runtime.text.text import Text
from tests.tiny_tokenizers import byte_level, folder_of

MARKERS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
THOUGHT = "<|channel|>analysis<|message|>the user asks<|end|>"
SAID = "<|start|>assistant<|channel|>final<|message|>It is 4\u00bd.<|return|>"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Text, Tokenizer]:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in MARKERS])
    return Text.load(folder_of(tokenizer, tmp_path)), tokenizer


def answer(text: Text, prompt: list[int], ids: list[int]) -> str:
    detokenizer = text.detokenizer(prompt)
    return "".join(map(detokenizer.push, ids)) + detokenizer.flush()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (THOUGHT + SAID, "It is 4\u00bd."),
        (SAID, "It is 4\u00bd."),
        (THOUGHT, ""),
        ("<|channel|>final<|message|>ab", "ab"),
        ("<|channel|>commentary to=functions.f<|message|>{}", "{}"),
        ("<|message|>ab", "ab"),
        ("plain", "plain"),
    ],
)
def test_thoughts_and_headers_are_no_text(pair: tuple[Text, Tokenizer], written: str, said: str) -> None:
    text, tokenizer = pair
    ids = tokenizer.encode(written).ids
    assert text.decode(ids) == said
    if written != "plain":
        assert (
            answer(text, tokenizer.encode("<|start|>user<|message|>2+2<|end|><|start|>assistant").ids, ids)
            == said
        )


def test_prompt_and_answer_together_are_the_whole(pair: tuple[Text, Tokenizer]) -> None:
    text, tokenizer = pair
    ids = tokenizer.encode("<|start|>user<|message|>q<|end|><|start|>assistant" + THOUGHT + SAID).ids
    whole = text.decode(ids)
    for cut in range(len(ids)):
        shown = answer(text, ids[:cut], ids[cut:])
        assert whole.endswith(shown)
        assert text.decode(ids[:cut]).rstrip("\ufffd") + shown == whole


def test_a_tokenizer_without_all_markers_shows_every_text(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in MARKERS[:2]])
    text = Text.load(folder_of(tokenizer, tmp_path))
    assert text.decode(tokenizer.encode("<|channel|>analysis").ids) == "analysis"
