"""Retells a story of somebody else, or about other things: first names and nouns exchanged throughout."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from paceline.export.training.words import BOYS, ENDINGS, GIRLS, KINDS, SYLLABLES

_CAPITALISED = re.compile(r"[A-Z][a-z]+")
_NAMED = re.compile(r"\b(?:named|called) ([A-Z][a-z]+)\b")
_NO_NAME = frozenset(
    "Mom Mommy Mum Mummy Mama Dad Daddy Papa Grandma Grandpa Granny Mr Mrs Miss Sir Santa Claus God End Birthday "
    "Christmas Yes No Oh Ow Wow Yay Hi Hello Hey Hooray Okay Thank Thanks Please Once The He She It They We You But "
    "And So Then When One His Her Their There This That What Why How Who Where Are Is Can Do Don Let Look Come Go "
    "Maybe Suddenly Finally From After Every In On At To As If Now Just Not My Your I Inc Jesus Monday Tuesday "
    "Wednesday Thursday Friday Saturday Sunday".split()
)
_GIRL_NAMES, _BOY_NAMES = frozenset(GIRLS), frozenset(BOYS)


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else noun + "s"


_PLURALS = {
    singular: plural or _plural(singular)
    for kind in KINDS
    for singular, _, plural in (entry.partition("/") for entry in kind)
}
_KIND_OF = {entry.partition("/")[0]: kind for kind in KINDS for entry in kind}


def names_in(story: str) -> list[str]:
    """First names of people and animals in the story, most often mentioned first; at least twice each.

    A name is a word that is always capitalised here, and stands after `named` or not only at the start of a sentence.
    """
    found: Counter[str] = Counter()
    inside = set(_NAMED.findall(story))
    for match in _CAPITALISED.finditer(story):
        before = story[: match.start()].rstrip(' \n"')
        found[match.group()] += 1
        if before and before[-1] not in ".!?:" and story[match.start() - 1] not in '"\n':
            inside.add(match.group())
    lower = set(re.findall(r"\b[a-z]+\b", story))
    return [
        w
        for w, n in found.most_common()
        if n >= 2 and w in inside and w not in _NO_NAME and w.lower() not in lower and len(w) > 2
    ]


def sex_of(story: str, name: str) -> str:
    """`girl`, `boy`, or "" where neither the name nor the pronouns of the story tell."""
    known = {"girl": name in _GIRL_NAMES, "boy": name in _BOY_NAMES}
    if known["girl"] != known["boy"]:
        return "girl" if known["girl"] else "boy"
    she = len(re.findall(r"\b(?:she|her|She|Her)\b", story))
    he = len(re.findall(r"\b(?:he|him|his|He|His)\b", story))
    return "" if 0.5 < (she + 0.1) / (he + 0.1) < 2.0 else "girl" if she > he else "boy"


def new_name(sex: str, rng: np.random.Generator) -> str:
    """A first name: mostly a common one that fits, else a made-up one."""
    if rng.random() < 0.2:
        parts = [SYLLABLES[i] for i in rng.integers(len(SYLLABLES), size=int(rng.integers(2, 4)))]
        return ("".join(parts) + ENDINGS[rng.integers(len(ENDINGS))]).capitalize()
    names = {"girl": GIRLS, "boy": BOYS}.get(sex, GIRLS + BOYS)
    return names[int(rng.integers(len(names)))]


def rename(story: str, old: str, new: str) -> str:
    """The same story about `new`."""
    return re.sub(rf"\b{old}\b", new, story)


def plural_of(word: str) -> str:
    """More than one of it."""
    return _PLURALS.get(word) or _plural(word)


def nouns_of_a_kind(story: str) -> list[str]:
    """Nouns of the story that others can stand for, in the order of their first mention."""
    return [w for w in dict.fromkeys(re.findall(r"\b[a-z]+\b", story)) if w in _KIND_OF]


def other_noun(noun: str, rng: np.random.Generator) -> str:
    """Another noun of the same kind."""
    kind = _KIND_OF[noun]
    return kind[rng.integers(len(kind))].partition("/")[0]


def exchange(story: str, old: str, new: str) -> str:
    """The same story with `new` for `old`: plural, capital and article follow. Unchanged where it has `new` already."""
    if re.search(rf"\b(?:{new}|{_PLURALS[new]})\b", story, re.IGNORECASE):
        return story
    for was, now in ((_PLURALS[old], _PLURALS[new]), (old, new)):
        story = re.sub(rf"\b{was}\b", now, story)
        story = re.sub(rf"\b{was.capitalize()}\b", now.capitalize(), story)
    article = "an" if new[0] in "aeio" or new.startswith("umb") else "a"
    return re.sub(rf"\b([Aa])n? (?={new}\b)", lambda m: m.group(1) + article[1:] + " ", story)


def retell(story: str, hero: str | None, rng: np.random.Generator) -> str:
    """The story with other things, and mostly with another first name for `hero`; consistent from end to end."""
    if hero is not None and rng.random() < 0.85:
        new = new_name(sex_of(story, hero), rng)
        if new not in story:
            story = rename(story, hero, new)
    counts = Counter(re.findall(r"\b[a-z]+\b", story))
    for noun in sorted(nouns_of_a_kind(story), key=lambda n: -counts[n])[:4]:
        if rng.random() < 0.3:
            story = exchange(story, noun, other_noun(noun, rng))
    return story
