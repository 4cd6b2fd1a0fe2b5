"""Turns a story into a request and its answer, by naming things that the story really contains."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

_DETERMINED = re.compile(
    r"\b(?:a|an|the|his|her|their|my)\s+((?:[a-z]+\s+)?)([a-z]{3,})\b(?=([.,!?;]|\s+[a-z]+))"
)
_FOLLOWERS = frozenset(
    "and was in on that to with who from is had of at for but were could said went ran felt or would by".split()
)
_VAGUE = frozenset(
    "day time way thing things one end side top bottom lot bit moment while morning night story middle "
    "rest idea name front back place inside outside other others same next first last each".split()
)
_REQUESTS = (
    "Tell me a story about {}.",
    "Tell me a story about {}.",
    "Tell me a short story about {}.",
    "Write a story about {}.",
    "Can you tell me a story about {}?",
    "Please tell a story with {}.",
    "I want a story about {}.",
    "A story about {}, please.",
)
_OPEN_REQUESTS = ("Tell me a story.", "Tell me a story, please.", "Write a short story.", "Once upon a time?")


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


def topics(story: str, nouns: Mapping[str, float]) -> list[str]:
    """Noun phrases of the story, such as `a red ball`: first those said often here and seldom elsewhere."""
    phrases: dict[str, Counter[str]] = {}
    for before, noun, _ in _phrases(story):
        if noun in nouns:
            phrase = f"{before} {noun}" if before and before not in nouns and len(before) > 2 else noun
            phrases.setdefault(noun, Counter())[phrase] += 1
    ranked = sorted(phrases, key=lambda n: -len(re.findall(rf"\b{n}\b", story)) * nouns[n])
    return [("an " if p[0] in "aeiou" else "a ") + p for p in (max(phrases[n], key=len) for n in ranked)]


def request_for(story: str, nouns: Mapping[str, float], rng: np.random.Generator) -> str:
    """A user's request that this story answers."""
    found = topics(story, nouns)[:3]
    if not found or rng.random() < 0.05:
        return _OPEN_REQUESTS[rng.integers(len(_OPEN_REQUESTS))]
    count = min(len(found), int(rng.choice([1, 2, 2, 3])))
    chosen = [found[i] for i in sorted(rng.choice(len(found), count, replace=False))]
    rng.shuffle(chosen)
    listed = chosen[0] if count == 1 else ", ".join(chosen[:-1]) + " and " + chosen[-1]
    return _REQUESTS[rng.integers(len(_REQUESTS))].format(listed)


def request_words() -> str:
    """Every word that a request may hold besides what it is about."""
    return " ".join(_REQUESTS + _OPEN_REQUESTS).replace("{}", "a thing, an apple, a thing and an apple")
