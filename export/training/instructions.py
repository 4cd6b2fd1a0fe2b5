"""Turns a story into a request and its answer: names, things and moods that the story really contains."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paceline.export.training.retelling import names_in, nouns_of_a_kind, plural_of, retell, sex_of
from paceline.export.training.words import MOODS

_DETERMINED = re.compile(
    r"\b(?:a|an|the|his|her|their|my)\s+((?:[a-z]+\s+)?)([a-z]{3,})\b(?=([.,!?;]|\s+[a-z]+))"
)
_FOLLOWERS = frozenset(
    "and was in on that to with who from is had of at for but were could said went ran felt or would by".split()
)
_VAGUE = frozenset(
    "day time way thing things one end side top bottom lot bit moment while morning night story middle "
    "rest idea name front back place inside outside other others same next first last each again together away she he "
    "they there look home before too out how not says came anymore them her him it us again tight playing".split()
)
_REQUESTS = (
    "Tell me a {mood}story about {asked}.",
    "Tell me a {mood}story about {asked}.",
    "Tell me a {mood}story about {asked}.",
    "Tell me a short {mood}story about {asked}.",
    "Write a {mood}story about {asked}.",
    "Write a short {mood}story about {asked}.",
    "Write me a {mood}story with {asked}.",
    "Can you tell me a {mood}story about {asked}?",
    "Please tell a {mood}story with {asked}.",
    "Please write a {mood}story about {asked}.",
    "I want a {mood}story about {asked}.",
    "I want a {mood}story with {asked}.",
    "I would like to hear a {mood}story about {asked}.",
    "A {mood}story about {asked}, please.",
    "Give me a {mood}story about {asked}.",
    "Make up a {mood}story about {asked}.",
    "Tell a {mood}story in which there is {asked}.",
    "Write a {mood}story in which {asked} can be found.",
    "Tell my child a {mood}bedtime story about {asked}.",
)
_OPEN_REQUESTS = (
    "Tell me a {mood}story.",
    "Tell me a {mood}story, please.",
    "Write a short {mood}story.",
    "I want to hear a {mood}story.",
    "Tell me another {mood}story.",
    "Once upon a time?",
)
_DEEDS = {
    "found": "finds", "saw": "sees", "loved": "loves", "wanted": "wants", "had": "has", "lost": "loses",
    "met": "meets", "got": "gets", "likes": "likes", "liked": "likes", "sees": "sees", "wants": "wants",
    "made": "makes", "bought": "buys", "helped": "helps",
}  # fmt: skip
_NAMED = 0.5
"""Share of the requests that name the hero, where there is one."""
_EARLY = 0.6
"""Nothing is asked for that comes up only after this share of a story."""
_UNSEEN = 9.0
"""Rarity of a noun that only a retold story holds."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A request, the story that answers it, and the names and noun phrases of the story that the request gives."""

    request: str
    story: str
    asked: tuple[str, ...]


def _phrases(story: str) -> Iterator[tuple[str, str, str]]:
    """(word before the noun or "", noun, what follows) wherever an article or a possessive stands."""
    for found in _DETERMINED.finditer(story):
        before, noun, after = found.group(1).strip(), found.group(2), found.group(3).strip()
        if noun in _FOLLOWERS or noun.endswith("ed"):  # the verb already
            before, noun, after = "", before, noun
        if noun:
            yield before, noun, after


def noun_lexicon(stories: Sequence[str], least: int = 20) -> dict[str, float]:
    """Words used as nouns, each with how rare it is: the log of one over the share of stories that hold it.

    A noun mostly stands at the end of its noun phrase when an article stands before it.
    """
    ends: Counter[str] = Counter()
    total: Counter[str] = Counter()
    holding: Counter[str] = Counter()
    for story in stories:
        words = set()
        for before, word, after in _phrases(story):
            total[word] += 1
            words.add(word)
            ends[word] += after in _FOLLOWERS or not after.isalpha()
            if before:
                total[before] += 1
        holding.update(words)
    nouns = (w for w, n in total.items() if n >= least and ends[w] / n > 0.6 and w not in _VAGUE)
    return {w: math.log(len(stories) / holding[w]) for w in nouns if holding[w]}


def topics(story: str, nouns: Mapping[str, float]) -> list[tuple[str, str]]:
    """(noun phrase such as `red ball`, its noun): first those said often here and seldom elsewhere."""
    known = {w: nouns.get(w, _UNSEEN) for w in nouns_of_a_kind(story)}
    phrases: dict[str, Counter[str]] = {}
    for before, noun, _ in _phrases(story):
        if noun in nouns or noun in known:
            adjective = before and before not in nouns and before not in known and len(before) > 2
            phrases.setdefault(noun, Counter())[f"{before} {noun}" if adjective else noun] += 1
    weight = {n: len(re.findall(rf"\b{n}\b", story)) * nouns.get(n, _UNSEEN) ** 2 for n in phrases}
    return [(max(phrases[n], key=len), n) for n in sorted(phrases, key=lambda n: -weight[n])]


def pair_for(story: str, nouns: Mapping[str, float], rng: np.random.Generator) -> Pair:
    """The story retold, and a user's request that it answers; most name one or two things or the hero.

    Who is not named by the request keeps a name: other names are learnt as copies, never as a habit.
    """
    names = names_in(story)
    hero = names[0] if names and rng.random() < _NAMED else None
    story = retell(story, hero, rng)
    named = names_in(story)[:1] if hero else []
    mood = _mood(story, rng)
    early = story[: int(_EARLY * len(story))]
    found = [t for t in topics(story, nouns)[:5] if story.count(t[1]) > 1 and t[1] in early]
    things = _chosen(
        found, int(rng.choice([0, 1, 1, 1, 2, 2, 3]) if named else rng.choice([1, 2, 2, 2, 2, 2, 3])), rng
    )
    if (not things and not named) or rng.random() < 0.04:
        wording = _OPEN_REQUESTS[rng.integers(len(_OPEN_REQUESTS))]
        return Pair(_worded(wording, mood, "", rng), story, ())
    listed = [_thing(phrase, noun, rng) for phrase, noun in things]
    asked = [re.sub(r"^(?:an?|some) ", "", phrase) for phrase in listed]
    if named:
        hero = _hero(story, named[0], rng)
        listed = _with_hero(story, hero, [noun for _, noun in things], listed, rng)
        asked += named
    text = listed[0] if len(listed) == 1 else ", ".join(listed[:-1]) + " and " + listed[-1]
    wording = _REQUESTS[rng.integers(len(_REQUESTS))]
    return Pair(_worded(wording, mood, text, rng), story, tuple(asked))


def first_places(asked: Sequence[str], story: str) -> list[tuple[int, int]]:
    """Where the story first says each name or thing, in characters; in that order.

    Plurals and capitals count, adjectives need not.
    """
    found = []
    for phrase in asked:
        *adjectives, noun = phrase.split()
        before = "".join(rf"(?:{word} )?" for word in adjectives)
        if said := re.search(rf"\b{before}(?:{plural_of(noun)}|{noun})\b", story, re.IGNORECASE):
            found.append(said.span())
    return sorted(found)


def _mood(story: str, rng: np.random.Generator) -> str:
    """`happy ` and the like where the story tells so at least twice, in one request of three; else nothing."""
    if rng.random() > 0.35:
        return ""
    said = Counter(re.findall(r"\b[a-z]+\b", story.lower()))
    felt = {mood: sum(said[w] for w in words) for mood, words in MOODS.items()}
    mood = max(felt, key=lambda m: felt[m])
    return f"{mood} " if felt[mood] > 1 else ""


def _chosen(found: list[tuple[str, str]], count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    if not found or not count:
        return []
    weights = 0.6 ** np.arange(len(found))
    picked = rng.choice(len(found), min(count, len(found)), replace=False, p=weights / weights.sum())
    return [found[i] for i in picked]


def _thing(phrase: str, noun: str, rng: np.random.Generator) -> str:
    said = phrase if rng.random() < 0.4 else noun
    if noun.endswith("s") and not noun.endswith(("ss", "us")):
        return ("some " if rng.random() < 0.4 else "") + said
    return ("an " if said[0] in "aeiou" else "a ") + said


def _hero(story: str, name: str, rng: np.random.Generator) -> str:
    """`Mia`, or what the story says Mia is: `a little girl named Mia`, `a cat called Mia`."""
    said = re.search(rf"\b(an? (?:[a-z]+ )?)([a-z]+),? (?:named|called) {name}\b", story)
    if rng.random() < 0.5:
        return name
    if said:
        what = said.group(1) + said.group(2) if rng.random() < 0.5 else "a " + said.group(2)
    else:
        sex = sex_of(story, name)
        if not sex or not re.search(rf"\b{sex}\b", story):
            return name
        what = "a " + sex
    what = re.sub(r"^a (?=[aeiou])", "an ", what)
    return f"{what} {('named', 'called')[rng.integers(2)]} {name}"


def _with_hero(
    story: str, hero: str, nouns: Sequence[str], listed: list[str], rng: np.random.Generator
) -> list[str]:
    """The hero first (mostly), with what the hero does or owns where the story says so."""
    if len(nouns) == 1 and rng.random() < 0.6:
        deed = re.search(rf"\b({'|'.join(_DEEDS)}) (?:an?|the|his|her|their) (?:[a-z]+ )?{nouns[0]}\b", story)
        if deed and rng.random() < 0.6:
            return [f"{hero} who {_DEEDS[deed.group(1)]} {listed[0]}"]
        if owner := re.search(rf"\b(his|her) (?:[a-z]+ )?{nouns[0]}\b", story):
            return [hero, owner.group(1) + " " + re.sub(r"^(?:an?|some) ", "", listed[0])]
    return [*listed, hero] if rng.random() < 0.2 else [hero, *listed]


def _worded(wording: str, mood: str, asked: str, rng: np.random.Generator) -> str:
    text = wording.format(mood=mood, asked=asked)
    text = re.sub(r"\b([Aa]) (?=exciting)", r"\1n ", text)
    if rng.random() < 0.15:  # as it is typed in a hurry
        text = text[0].lower() + text[1:].rstrip(".")
    return text
