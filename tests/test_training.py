from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from paceline.embedded import embedded_bundle  # noqa: E402
from paceline.export.training.corpus import Corpus, Source, load_corpus, read_stories  # noqa: E402
from paceline.export.training.instructions import noun_lexicon, pair_for, topics  # noqa: E402
from paceline.export.training.lm import (  # noqa: E402
    Recipe,
    Shape,
    bits_per_byte,
    save_model,
    train,
)
from paceline.export.training.rows import Document, StoryStream, batches_by_length  # noqa: E402
from paceline.export.training.start import start_from  # noqa: E402
from paceline.export.training.vocabulary import ASSISTANT, USER, train_vocabulary  # noqa: E402
from paceline.runtime.loading import load  # noqa: E402
from paceline.runtime.request import Sampling  # noqa: E402

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
        assert all(phrase in story and phrase.split()[-1] == noun for phrase, noun in topics(story, nouns))
        pair = pair_for(story, nouns, rng)
        assert all(phrase in pair.story and phrase in pair.request for phrase in pair.asked)


def test_rare_words_are_asked_for_before_common_ones() -> None:
    nouns = noun_lexicon([*STORIES, "The garden had a garden."])
    assert nouns["garden"] < nouns["dog"]
    assert topics(STORIES[0], nouns)[0][0] in ("dog", "red ball")


def test_no_held_out_story_is_trained_on_whatever_its_weight(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(STORIES))
    (tmp_path / "b.jsonl").write_text("\n".join(f'{{"text": "{story}"}}' for story in STORIES[::7]))
    corpus = load_corpus([Source(tmp_path / "a.txt", 2), Source.parse(f"{tmp_path / 'b.jsonl'}=3")])
    assert corpus.held_out
    assert not set(corpus.held_out) & set(corpus.train)
    assert corpus.train.count(corpus.train[-1]) == 5
    with pytest.raises(ValueError, match="weight"):
        Source.parse("a.txt=often")


@pytest.mark.parametrize("line", ["{", "[1]", '{"story": "x"}', '{"text": 5}', "null"])
def test_a_line_that_holds_no_story_is_named(tmp_path: Path, line: str) -> None:
    (page := tmp_path / "a.jsonl").write_text(f'{{"text": "{STORIES[0]}"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=r"line 3 of .*a\.jsonl is no JSON object with a text"):
        read_stories(page)


def test_a_text_without_markers_is_cut_where_stories_open(tmp_path: Path) -> None:
    page = tmp_path / "plain.txt"
    page.write_text("\n\n".join(story.replace(". ", ".\n\n", 1) for story in STORIES[:5]))
    assert len(read_stories(page)) == 5


def test_rows_hold_every_document_once_in_batches_of_like_length() -> None:
    documents = [
        Document(np.arange(i, dtype=np.uint16) + 1, np.ones(i, np.float32)) for i in (3, 40, 5, 39, 4, 90)
    ]
    batches = list(batches_by_length(documents, 80, 64, np.random.default_rng(0)))
    assert sum(len(b.tokens) for b in batches) == 6
    assert sum(b.weights.sum() for b in batches) == 2 + 39 + 4 + 38 + 3 + 64  # the last one is cut
    for tokens, weights in batches:
        assert weights.shape == (len(tokens), tokens.shape[1] - 1)
        assert len(tokens) * weights.shape[1] <= 80
        assert np.array_equal(tokens[:, 1:] > 0, weights > 0)


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


def test_only_what_a_request_names_is_emphasised_and_no_request_is_learnt(tmp_path: Path) -> None:
    tokenizer = train_vocabulary(STORIES, 400)
    corpus_file = tmp_path / "stories.txt"
    corpus_file.write_text("<|endoftext|>".join(STORIES))
    corpus = load_corpus([Source(corpus_file)])
    stream = StoryStream(corpus, tokenizer, Recipe(batch=2, chat_share=1.0, emphasis=7.0), 128)
    user, assistant = (tokenizer.token_to_id(t) for t in (USER, ASSISTANT))
    tokens, weights = next(stream.batches(0))
    for row, counted in zip(tokens, weights, strict=True):
        asks, tells = np.flatnonzero(row == user)[0], np.flatnonzero(row == assistant)[0]
        assert not counted[asks - 1 : tells].any()
        assert (counted[tells : np.flatnonzero(counted)[-1]] >= 1).all()
        request = tokenizer.decode(row[asks + 1 : tells].tolist())
        named = tokenizer.decode(row[1:][counted == 7].tolist()).split()
        assert named or request.lower().rstrip(".?").endswith(("story", "time", "please"))
        assert all(word.rstrip("s") in request for word in named)


def test_weights_read_back_from_a_bundle_say_what_it_says() -> None:
    weights, sizes = start_from(embedded_bundle())
    model = Shape(**sizes).build().eval()
    missing = model.load_state_dict(weights, strict=False)
    assert missing.missing_keys == ["lm_head.weight"]  # tied
    with load(embedded_bundle(), drafter="none", cache="fp32") as session:
        ids = session.text.encode("Once upon a time there was a")
        events = session.generate(ids, max_tokens=40, sampling=Sampling())
        told = [e.token for e in events if e.token is not None]
    written = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False, eos_token_id=[0, 3])
    assert written[0, len(ids) :].tolist()[: len(told)] == told


def test_training_goes_on_from_a_folder_or_not_at_all(tmp_path: Path) -> None:
    tokenizer = train_vocabulary(STORIES, 400)
    shape = Shape(32, 2, 2, 1, 64, 400, 64)
    first = shape.build()
    save_model(first, tokenizer, tmp_path / "first")
    weights, sizes = start_from(tmp_path / "first")
    assert Shape(**sizes) == shape
    recipe = Recipe(batch=2, minutes=0)
    corpus = Corpus(STORIES, STORIES[:2])
    stream = StoryStream(corpus, tokenizer, recipe, 64)
    ended: list[str | None] = []
    made = train(
        stream,
        corpus.held_out,
        tokenizer,
        shape,
        recipe,
        tmp_path / "second",
        lambda p: ended.append(p.ended),
        begin=weights,
    )
    assert ended == ["minutes"]
    for name, value in first.state_dict().items():
        assert torch.equal(value.half(), made.state_dict()[name].half())
    with pytest.raises(ValueError, match="of another shape"):
        train(
            stream,
            (),
            tokenizer,
            Shape(16, 2, 2, 1, 64, 400, 64),
            recipe,
            tmp_path / "third",
            print,
            begin=weights,
        )
    with pytest.raises(ValueError, match="no model to go on from"):
        start_from(tmp_path)
