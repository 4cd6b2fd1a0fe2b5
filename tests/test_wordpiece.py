"""WordPiece tokenizers: decoded as they do it themselves, and read and drafted across vocabularies."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import KINDS, folder_of, wordpiece
from tokenizers import Tokenizer

from paceline.runtime.bundle.generation import Generation
from paceline.runtime.text.text import Text
from paceline.runtime.translation.ngrams import NgramCache
from paceline.runtime.translation.reading import Reading
from paceline.runtime.translation.sides import Sides
from paceline.runtime.translation.spelling import Spelling

ENDS = Generation(eos_ids=[3])


@cache
def pair(cleanup: bool, prefix: str) -> tuple[Text, Tokenizer]:
    tokenizer = wordpiece(cleanup, prefix)
    return Text.load(folder_of(tokenizer, Path(tempfile.mkdtemp())), ENDS), tokenizer


@pytest.mark.parametrize(("cleanup", "prefix"), [(True, "##"), (False, "##"), (True, "@")])
@given(st.randoms(use_true_random=False), st.integers(0, 8), st.integers(0, 16))
@settings(max_examples=40, deadline=None)
def test_any_tokens_are_decoded_as_their_tokenizer_does(
    cleanup: bool, prefix: str, random: Random, before: int, after: int
) -> None:
    text, tokenizer = pair(cleanup, prefix)
    prompt, answer = ([random.randrange(text.vocab_size) for _ in range(n)] for n in (before, after))
    whole = tokenizer.decode(prompt + answer)
    assert text.decode(prompt + answer) == whole
    shown, growing = text.detokenizer(), text.detokenizer(prompt)
    asked = "".join(map(shown.push, prompt))
    assert asked + "".join(map(growing.push, answer)) + growing.flush() == whole


@pytest.mark.parametrize(("cleanup", "shown"), [(True, "then't."), (False, "the n't .")])
def test_a_text_is_cleaned_up_where_its_tokenizer_does_so(cleanup: bool, shown: str) -> None:
    text, _ = pair(cleanup, "##")
    tokens = [text.token_id(name) for name in ("the", "n't", ".")]
    assert text.decode([token for token in tokens if token is not None]) == shown


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_text_is_read_word_by_word_and_words_are_drafted(kind: str, tmp_path: Path) -> None:
    text, tokenizer = pair(True, "##")
    side, known = Spelling.of(text), tokenizer.token_to_id
    spelled = {name: side.pieces[known(name)] for name in ("the", "##l", ".", "n't", "[CLS]")}
    assert spelled == {"the": b" the", "##l": b"l", ".": b".", "n't": b"n't", "[CLS]": None}
    target = Spelling.of(Text.load(folder_of(KINDS[kind](), tmp_path), Generation(eos_ids=[2])))
    sides = Sides(side, target, NgramCache(1_000_000))
    story = " there was a little dog. the dog had a red ball, and it was the best ball of all."
    read = Reading(sides, sides.ngrams).follow(target.encode(story))
    assert side.spells(read).strip() == story.encode().strip()
    assert read == side.encode(story), "cut as its own tokenizer cuts it"
    assert sides.mapping.shared > 20
    assert side.cover(b"\n") is None, "what no token spells is not drafted, and not taken for a blank"
