from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("torch")

from paceline.export.training.corpus import begins, goes_in_circles
from paceline.export.training.instructions import first_places, pair_for
from paceline.export.training.retelling import (
    exchange,
    names_in,
    new_name,
    rename,
    retell,
    sex_of,
)
from paceline.export.training.words import BOYS, GIRLS, KINDS, MOODS

pytestmark = pytest.mark.export

MIA = (
    "Once upon a time there was a little girl named Mia. Mia found a red kite. She was happy and smiled. "
    'Her mom said, "Mia, fly the kite with Tom!" Mia and Tom flew the kite. They were happy. Tom had an apple. '
    "He said that kites were fun. The apple was sweet. Mia had a dog. The dog saw the kite."
)
NOUNS = {"kite": 3.0, "dog": 2.0, "apple": 4.0, "mom": 0.5, "girl": 0.5}


def many(count: int = 300) -> list[str]:
    rng = np.random.default_rng(3)
    return [pair_for(MIA, NOUNS, rng).request for _ in range(count)]


def test_the_hero_is_the_name_said_most_and_no_parent_is_one() -> None:
    assert names_in(MIA) == ["Mia", "Tom"]
    assert names_in("Then Then Then it rained. Once Once Mom came. Mom laughed at Mom.") == []
    assert sex_of(MIA, "Mia") == "girl"
    assert sex_of("Zorb said he lost his hat. He cried.", "Zorb") == "boy"
    assert sex_of("Zorb slept.", "Zorb") == ""


def test_a_new_name_fits_and_stands_everywhere() -> None:
    rng = np.random.default_rng(0)
    drawn = {sex: {new_name(sex, rng) for _ in range(3000)} for sex in ("girl", "boy")}
    assert set(GIRLS) - drawn["girl"] == set() == set(BOYS) - drawn["boy"]
    made_up = drawn["girl"] - set(GIRLS)
    assert len(made_up) > 100
    assert all(re.fullmatch("[A-Z][a-z]+", name) for name in made_up)
    told = rename(MIA, "Mia", "Zora")
    assert "Mia" not in told
    assert told.count("Zora") == MIA.count("Mia")


def test_a_thing_is_exchanged_with_its_plural_and_article() -> None:
    told = exchange(MIA, "apple", "pear")
    assert "apple" not in told
    assert "had a pear" in told
    told = exchange("The dogs saw a dog. Dog! A dog sat.", "dog", "elephant")
    assert told == "The elephants saw an elephant. Elephant! An elephant sat."
    assert exchange("A dog and two mice.", "dog", "mouse") == "A dog and two mice."
    assert exchange("A mouse met mice.", "mouse", "wolf") == "A wolf met wolves."
    words = [entry.partition("/")[0] for kind in KINDS for entry in kind]
    assert len(words) == len(set(words))


def test_retelling_keeps_every_sentence() -> None:
    rng = np.random.default_rng(1)
    told = [retell(MIA, "Mia", rng) for _ in range(100)]
    assert len(set(told)) > 80
    assert all(len(t.split()) == len(MIA.split()) for t in told)
    assert sum("Mia" in t for t in told) < 40
    assert all("Mia" in retell(MIA, None, rng) for _ in range(30))


def test_only_a_hero_whom_the_request_names_has_another_name() -> None:
    rng = np.random.default_rng(4)
    pairs = [pair_for(MIA, NOUNS, rng) for _ in range(200)]
    renamed = [p for p in pairs if "Mia" not in p.story]
    assert 50 < len(renamed) < 120
    for pair in renamed:
        hero = names_in(pair.story)[0]
        if pair.asked:
            assert hero in pair.request
            assert hero in pair.asked


def test_requests_come_in_many_wordings_with_names_moods_and_deeds() -> None:
    asked = many()
    assert len({a.split(" about ")[0].split(" with ")[0] for a in asked}) > 25
    assert any(re.search("girl (named|called) [A-Z]", a) for a in asked)
    assert any("who finds a" in a for a in asked)
    assert any("happy" in a for a in asked)
    assert not any("scary" in a or "sad" in a.split() for a in asked)
    assert any(re.search("a (happy )?story[.,]?$", a) for a in asked)
    assert not any("{" in a or "  " in a or re.search(r"\ba [aeio]", a) for a in asked)


def test_a_mood_is_asked_for_only_where_the_story_has_it() -> None:
    rng = np.random.default_rng(2)
    dull = "A dog sat near a tree. The dog saw the tree."
    assert not any(mood in pair_for(dull, NOUNS, rng).request for _ in range(100) for mood in MOODS)


def test_places_are_the_first_ones_of_what_is_asked_for() -> None:
    said = [(a, MIA[a:b]) for a, b in first_places(("Mia", "red kite", "dog", "small apple", "cow"), MIA)]
    assert said == [(MIA.index(w), w) for w in ("Mia", "red kite", "apple", "dog")]
    assert first_places(("kite",), "Kites fly.") == [(0, 5)]
    assert first_places((), MIA) == []


@pytest.mark.parametrize(
    ("opening", "whole"),
    [
        ("Once upon a time, there was a dog.", True),
        ("Mia and Tom were friends.", True),
        ("There was a robot.", True),
        ("He ran home.", False),
        ("One day, they go to the park.", False),
        ("The little girl smiled.", False),
    ],
)
def test_a_story_begins_as_one(opening: str, whole: bool) -> None:
    assert begins(opening) is whole


def test_circles_are_seen() -> None:
    assert goes_in_circles("They do not like the cake. " * 6)
    told = "The animal saw a tree. Then it found an animal near that river. An animal can bite. One {} came back, "
    told += (
        "another {} ran off, some {} slept, my {} ate fish, his {} sang, no {} was sad and her {} was glad."
    )
    assert goes_in_circles(told.format(*["animal"] * 7))
    assert not goes_in_circles(told.format(*"fox dog cow hen pig ant bee".split()))
    assert not goes_in_circles(MIA)
