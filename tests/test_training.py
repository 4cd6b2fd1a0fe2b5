from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from paceline.export.training.corpus import Source, load_corpus, read_stories  # noqa: E402
from paceline.export.training.instructions import noun_lexicon, request_for, topics  # noqa: E402
from paceline.export.training.lm import (  # noqa: E402
    EMPHASIS,
    Recipe,
    Shape,
    StoryStream,
    bits_per_byte,
    packed_rows,
    train,
)
from paceline.export.training.vocabulary import train_vocabulary  # noqa: E402

pytestmark = pytest.mark.export

HEROES = ["dog", "cat", "frog", "bear", "duck"]
THINGS = ["red ball", "big cake", "old boat", "tall tree"]
STORIES = tuple(
    f"Once upon a time a {hero} was in the garden. The {hero} had a {thing} and ate it on day {i}. "
    f"The {hero} was happy with the {thing}."
    for i in range(60)
    for hero in HEROES
    for thing in THINGS
)


def test_a_request_names_only_what_the_story_holds() -> None:
    nouns = noun_lexicon(STORIES)
    assert set(HEROES) <= set(nouns)
    assert "red" not in nouns
    rng = np.random.default_rng(0)
    for story in STORIES[:40]:
        assert all(topic.split(" ", 1)[1] in story for topic in topics(story, nouns))
        asked = re.findall(r"\ban? ([a-z]+(?: [a-z]+)?)(?=,| and|[.?])", request_for(story, nouns, rng))
        assert all(phrase.split()[-1] in story for phrase in asked if "story" not in phrase)


def test_rare_words_are_asked_for_before_common_ones() -> None:
    nouns = noun_lexicon([*STORIES, "The garden had a garden."])
    assert nouns["garden"] < nouns["dog"]
    assert topics(STORIES[0], nouns)[0] in ("a dog", "a red ball")


def test_no_held_out_story_is_trained_on_whatever_its_weight(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(STORIES))
    (tmp_path / "b.jsonl").write_text("\n".join(f'{{"text": "{story}"}}' for story in STORIES[::7]))
    corpus = load_corpus([Source(tmp_path / "a.txt", 2), Source.parse(f"{tmp_path / 'b.jsonl'}=3")])
    assert corpus.held_out
    assert not set(corpus.held_out) & set(corpus.train)
    assert corpus.train.count(corpus.train[-1]) == 5
    with pytest.raises(ValueError, match="weight"):
        Source.parse("a.txt=often")


def test_a_text_without_markers_is_cut_where_stories_open(tmp_path: Path) -> None:
    page = tmp_path / "plain.txt"
    page.write_text("\n\n".join(story.replace(". ", ".\n\n", 1) for story in STORIES[:5]))
    assert len(read_stories(page)) == 5


def test_packed_rows_hold_every_token_once_as_a_target() -> None:
    flat = np.arange(101, dtype=np.uint16)
    rows = np.concatenate([batch[:, 1:].ravel() for batch in packed_rows(flat, 2, 10)])
    assert rows.tolist() == list(range(1, 101))


@pytest.mark.slow
def test_training_learns_and_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path: Path) -> None:
    corpus_file = tmp_path / "stories.txt"
    corpus_file.write_text("<|endoftext|>".join(STORIES))
    corpus = load_corpus([Source(corpus_file)])
    tokenizer = train_vocabulary(corpus.train, 400)
    shape = Shape(32, 2, 2, 1, 64, 400, 64)

    def run(folder: str, epochs: float) -> tuple[dict[str, torch.Tensor], list[float]]:
        recipe = Recipe(epochs=epochs, batch=4, checkpoint_minutes=1e9)
        stream = StoryStream(corpus, tokenizer, recipe, 64)
        told: list[float] = []
        made = train(
            stream,
            corpus.held_out,
            tokenizer,
            shape,
            recipe,
            tmp_path / folder,
            lambda p: told.append(p.loss),
        )
        assert bits_per_byte(made.eval(), tokenizer, corpus.held_out, 64) < 4
        return {k: v.clone() for k, v in made.state_dict().items()}, told

    _, told = run("whole", 0.5)
    assert told[-1] < told[0] * 0.8
    before, _ = run("whole", 0.5)  # nothing is left to do: the checkpoint itself
    again, _ = run("whole", 0.5)
    assert all(torch.equal(before[k], again[k]) for k in before)


def test_only_what_a_request_names_is_emphasised(tmp_path: Path) -> None:
    tokenizer = train_vocabulary(STORIES, 400)
    corpus_file = tmp_path / "stories.txt"
    corpus_file.write_text("<|endoftext|>".join(STORIES))
    corpus = load_corpus([Source(corpus_file)])
    stream = StoryStream(corpus, tokenizer, Recipe(batch=2, chat_share=1.0), 128)
    rows = next(stream.batches(0))
    words = {tokenizer.decode([int(t) % EMPHASIS]).strip() for t in rows[rows >= EMPHASIS]}
    assert words
    assert words <= {*HEROES, *" ".join(THINGS).split(), "garden"}
