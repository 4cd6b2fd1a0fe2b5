"""What tokens spell: texts keep every letter on their way to another vocabulary, and letters have one token."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hard_texts import HARD
from tiny_tokenizers import KINDS, SEEN, folder_of
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from paceline.runtime.bundle.generation import Generation
from paceline.runtime.text.text import Text
from paceline.runtime.translation.ngrams import NgramCache
from paceline.runtime.translation.reading import Reading
from paceline.runtime.translation.sides import Sides
from paceline.runtime.translation.spelling import Spelling

ENDS = {"byte-level": 0, "sentencepiece": 2, "unigram": 2, "metaspace": 2, "characters": 2}
POOR = ("metaspace", "characters")
"""These have no tokens for bytes."""


def characters() -> Tokenizer:
    """A token for each letter of one text, and no other; a blank is put before a text."""
    letters = ["<unk>", "<s>", "</s>", "▁", *sorted(set(SEEN[0]) - {" "})]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in letters[:3]])
    return tokenizer


MADE = KINDS | {"characters": characters}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Text]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        kind: Text.load(folder_of(make(), folder / kind), Generation(eos_ids=[ENDS[kind]]))
        for kind, make in MADE.items()
    }


@pytest.mark.parametrize(
    ("draft", "target"), [(one, other) for one in MADE for other in MADE if one != other]
)
def test_every_text_reads_alike_on_both_sides(texts: dict[str, Text], draft: str, target: str) -> None:
    """Blanks in front and halves of characters included; letters that the draft model cannot spell are left out."""
    pair = Sides(Spelling.of(texts[draft]), Spelling.of(texts[target]), NgramCache(1_000_000))
    for text in (*SEEN, *HARD):
        tokens = pair.target.encode(text)
        meant = texts[target].decode(tokens)
        whole, grown = Reading(pair, pair.ngrams), Reading(pair, pair.ngrams)
        for size in range(1, len(tokens) + 1):
            grown.follow(tokens[:size])
        for read in (whole.follow(tokens), grown.tokens):
            shown = texts[draft].decode(read)
            if draft not in POOR:
                assert shown == meant
            letters = iter(meant)
            assert all(letter in letters for letter in shown)


@pytest.mark.parametrize("kind", ["sentencepiece", "unigram"])
def test_of_tokens_that_spell_the_same_the_one_counts_that_the_tokenizer_makes(
    texts: dict[str, Text], kind: str
) -> None:
    """A letter and its byte."""
    side, several = Spelling.of(texts[kind]), 0
    for piece, token in side.by_bytes.items():
        alike = [one for one, spelled in enumerate(side.pieces) if spelled == piece]
        several += len(alike) > 1
        made = {one for before in ("x", "\n") for one in side.encode(before + piece.decode(errors="ignore"))}
        assert token in made or not made.intersection(alike)
    assert several > 20


@pytest.mark.parametrize(("begin", "opening"), [(1, [1]), (None, [])])
def test_what_begins_a_text_is_no_end_there(
    texts: dict[str, Text], begin: int | None, opening: list[int]
) -> None:
    """GPT-2 and the storyteller have one token for both."""
    draft, target = Spelling.of(texts["sentencepiece"]), Spelling.of(texts["byte-level"])
    ours = replace(draft, roles={"end": 2} | ({} if begin is None else {"begin": begin}))
    reading = Reading(Sides(ours, replace(target, roles={"begin": 0, "end": 0}), NgramCache(1000)), None)
    read = reading.follow([0, *target.encode("a dog"), 0])
    assert read[: len(opening)] == opening
    assert ours.spells(read) == b" a dog"
    assert [token for token in read if token in (1, 2)] == [*opening, 2]
    assert reading.follow([0]) == opening


def test_tokens_that_end_an_answer_are_joined_with_the_one_that_does(texts: dict[str, Text]) -> None:
    """All of either side's, with the one that plays the part."""
    draft, target = Spelling.of(texts["sentencepiece"], end=2), Spelling.of(texts["byte-level"])
    beyond = Spelling.of(texts["sentencepiece"], end=10**9)
    pair = Sides(draft, target, NgramCache(1000))
    assert pair.to_target[2] == 0
    assert pair.to_draft[0] == 2
    assert beyond.roles["end"] == 2
