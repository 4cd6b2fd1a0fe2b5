"""Turns a story into a request and its answer, by naming things that the story really contains."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

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


def noun_lexicon(stories: Iterable[str], least: int = 20) -> frozenset[str]:
    """Words used as nouns: mostly at the end of their noun phrase when an article stands before them."""
    ends: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for story in stories:
        for found in _DETERMINED.finditer(story):
            word, after = found.group(2), found.group(3).strip()
            total[word] += 1
            ends[word] += after in _FOLLOWERS or not after.isalpha()
            if found.group(1):
                total[found.group(1).strip()] += 1
    return frozenset(w for w, n in total.items() if n >= least and ends[w] / n > 0.6 and w not in _VAGUE)


def topics(story: str, nouns: frozenset[str]) -> list[str]:
    """Noun phrases of the story, such as `a red ball`, the ones that matter most to it first."""
    phrases: dict[str, Counter[str]] = {}
    for found in _DETERMINED.finditer(story):
        before, noun = found.group(1).strip(), found.group(2)
        if noun in nouns:
            phrase = f"{before} {noun}" if before and before not in nouns and len(before) > 2 else noun
            phrases.setdefault(noun, Counter())[phrase] += 1
    ranked = sorted(phrases, key=lambda n: -len(re.findall(rf"\b{n}\b", story)))
    return [("an " if p[0] in "aeiou" else "a ") + p for p in (max(phrases[n], key=len) for n in ranked)]


def request_for(story: str, nouns: frozenset[str], rng: np.random.Generator) -> str:
    """A user's request that this story answers."""
    found = topics(story, nouns)[:5]
    if not found or rng.random() < 0.05:
        return _OPEN_REQUESTS[rng.integers(len(_OPEN_REQUESTS))]
    count = min(len(found), int(rng.choice([1, 2, 2, 3])))
    chosen = [found[i] for i in sorted(rng.choice(len(found), count, replace=False))]
    rng.shuffle(chosen)
    listed = chosen[0] if count == 1 else ", ".join(chosen[:-1]) + " and " + chosen[-1]
    return _REQUESTS[rng.integers(len(_REQUESTS))].format(listed)
