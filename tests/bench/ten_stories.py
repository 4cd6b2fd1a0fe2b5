"""Ten unselected stories of a bundle, and how often a story holds what was asked for.

python tests/bench/ten_stories.py [--bundle DIR] [--frequency X] [--temp X] TEXT...

TEXT are the files that the storyteller learnt from: the nouns asked for are drawn from the stories held out of them.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from paceline.embedded import embedded_bundle
from paceline.export.training.corpus import Source, load_corpus
from paceline.export.training.instructions import noun_lexicon
from paceline.runtime.bundle.generation import sampling_of
from paceline.runtime.loading import load
from paceline.runtime.session import Session

ASKED = (
    ("dog", "red ball"), ("princess", "frog"), ("robot", "flower"), ("boat", "storm"), ("cat", "big cake"),
    ("bear", "honey"), ("girl", "lost key"), ("farmer", "cow"), ("bird", "nest"), ("boy", "magic hat"),
)  # fmt: skip
GIRLS = (
    "Mia Anna Zoe Ruby Priya Hannah Fatima Olivia Ingrid Clara Nora Sofia Maya Leila Yuki Grace Elena Chloe Rosa Ivy "
    "Violet Charlotte Florence Audrey Harriet Georgia Imogen Lauren Madeleine Agnes Amber Annika Brooke Danielle "
    "Erica Felicity Genevieve Gwen Heather Jessica Judith Kimberly Louise Lucinda Melanie Monica Nicole Pamela Tabitha "
    "Savannah"
).split()
BOYS = (
    "Tom Ben Omar Noah Felix Hugo Diego Arjun Leo Oscar Kofi Liam Mateo Owen Peter Rafael Sven Theo Victor Zane "
    "Adrian Alfred Angus Archie Bernard Calvin Cedric Clyde Conrad Dexter Dominic Elliot Ernest Eugene Fergus "
    "Gilbert Gordon Graham Jerome Jonathan Justin Kevin Lawrence Leonard Logan Marcus Maurice Nathaniel Nigel Quinn"
).split()
"""The first 20 of both were among the names that stories were retold with; the other 30 never were."""
KNOWN = 20


def main() -> None:
    """Print the stories as Markdown, then the shares of words found."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("text", nargs="+", type=Source.parse)
    options.add_argument("--bundle", type=Path, default=embedded_bundle())
    options.add_argument("--repetition", type=float)
    options.add_argument("--frequency", type=float)
    options.add_argument("--presence", type=float)
    options.add_argument("--temp", type=float)
    options.add_argument("--top-p", type=float)
    options.add_argument("--no-stories", action="store_true")
    options.add_argument("--draw", type=int, default=2026, help="which draw of nouns")
    options.add_argument("--requests", type=int, default=100, help="of each kind, at most 100")
    chosen = options.parse_args()
    nouns = nouns_of(load_corpus(chosen.text).held_out)
    rng = np.random.default_rng(chosen.draw)
    drawn = [str(n) for n in np.concatenate([rng.permutation(nouns) for _ in range(1 + 300 // len(nouns))])]
    with load(chosen.bundle) as session:
        given = {
            "repetition_penalty": chosen.repetition, "frequency_penalty": chosen.frequency, "top_p": chosen.top_p,
            "presence_penalty": chosen.presence, "temperature": chosen.temp,
        }  # fmt: skip
        teller = Teller(session, {k: v for k, v in given.items() if v is not None})
        for hero, thing in () if chosen.no_stories else ASKED[: chosen.requests]:
            request = f"Tell me a story about {article(hero)} and {article(thing)}."
            print(f"**{request}**\n\n> " + teller.tell(request).replace("\n", "\n>\n> ") + "\n", flush=True)
        pairs(teller, drawn[: 2 * chosen.requests])
        heroes(teller, drawn[200:300][: chosen.requests])
        teller.report()


class Teller:
    """Asks for stories, and keeps account of how they are told."""

    def __init__(self, session: Session, sampling: dict[str, float]) -> None:
        self._session, self._sampling = session, replace(sampling_of(session.bundle.generation), **sampling)
        self.stories: list[str] = []
        self.ended = 0

    def tell(self, request: str) -> str:
        """The story, as the bundle's defaults (or the flags) have it told."""
        events = list(
            self._session.chat([{"role": "user", "content": request}], sampling=self._sampling, seed=1)
        )
        self.ended += events[-1].finish_reason == "stop"
        self.stories.append("".join(event.text for event in events))
        return self.stories[-1]

    def report(self) -> None:
        """Whether stories end, and how often they say a thing twice."""
        sentences = [s for story in self.stories for s in set_of(story)]
        again = sum(len(s) - len(set(s)) for s in map(set_of, self.stories))
        ((opening, often),) = Counter(story[:60] for story in self.stories).most_common(1)
        print(f"{len(self.stories)} stories: {self.ended} ended, {again / len(sentences):.1%} of the sentences "
              f"said before in the same story; {often} begin {opening!r}")  # fmt: skip


def set_of(story: str) -> list[str]:
    """The sentences of a story."""
    return [s.strip() for s in re.split(r"(?<=[.!?])\s+", story) if s.strip()]


def pairs(teller: Teller, nouns: Sequence[str]) -> None:
    """Requests for two things."""
    found = []
    for first, second in zip(nouns[::2], nouns[1::2], strict=True):
        told = teller.tell(f"Tell me a story about {article(first)} and {article(second)}.")
        found.append((holds(told, first), holds(told, second)))
        print(
            f"  {first}{'' if found[-1][0] else ' (no)'}, {second}{'' if found[-1][1] else ' (no)'}", end=";"
        )
    print(f"\n{len(found)} requests for two nouns: the first is in {sum(a for a, _ in found)} stories, the second in "
          f"{sum(b for _, b in found)}, both in {sum(a and b for a, b in found)}", flush=True)  # fmt: skip


def heroes(teller: Teller, nouns: Sequence[str]) -> None:
    """Requests that give the hero's name, half of them with what the hero is."""
    named = [("girl", n, i < KNOWN) for i, n in enumerate(GIRLS)] + [
        ("boy", n, i < KNOWN) for i, n in enumerate(BOYS)
    ]
    kept: dict[bool, list[bool]] = {True: [], False: []}
    things = 0
    for turn, ((what, name, known), noun) in enumerate(zip(named, nouns, strict=False)):
        hero = f"a {what} named {name}" if turn % 2 else name
        told = teller.tell(f"Tell me a story about {hero} and {article(noun)}.")
        kept[known].append(holds(told, name))
        things += holds(told, noun)
        if not kept[known][-1]:
            print(f"  no {name}", end=";")
    total = kept[True] + kept[False]
    print(f"\n{len(total)} requests that name the hero: the name is in {sum(total)} stories ({sum(kept[True])} of "
          f"{len(kept[True])} known names, {sum(kept[False])} of {len(kept[False])} unknown ones), the thing in "
          f"{things}", flush=True)  # fmt: skip


def nouns_of(stories: Sequence[str]) -> list[str]:
    """Common nouns, singular, in alphabetical order: those that come once in a hundred stories or more often."""
    lexicon = noun_lexicon(stories, least=max(2, len(stories) // 100))
    return sorted(n for n in lexicon if not n.endswith("s") or n.endswith("ss"))


def article(phrase: str) -> str:
    """`an apple`."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def holds(story: str, word: str) -> bool:
    """Whether the story says the word, or more than one of it."""
    return re.search(rf"\b{word}(?:s|es)?\b", story, re.IGNORECASE) is not None


if __name__ == "__main__":
    main()
