"""Ten unselected stories of the embedded bundle, and how often a story holds what was asked for.

python tests/bench/ten_stories.py
"""

from __future__ import annotations

import itertools

from paceline.embedded import embedded_bundle
from paceline.runtime.loading import load

ASKED = (
    ("dog", "red ball"), ("princess", "frog"), ("robot", "flower"), ("boat", "storm"), ("cat", "big cake"),
    ("bear", "honey"), ("girl", "lost key"), ("farmer", "cow"), ("bird", "nest"), ("boy", "magic hat"),
)  # fmt: skip
HEROES = ["dog", "cat", "girl", "boy", "bird", "bear", "rabbit", "frog", "mouse", "fish"]
THINGS = ["ball", "cake", "tree", "boat", "hat", "flower", "key", "book", "box", "apple"]


def main() -> None:
    """Print the stories as Markdown, then the share of words found."""
    with load(embedded_bundle()) as session:

        def tell(hero: str, thing: str, seed: int) -> str:
            request = f"Tell me a story about a {hero} and a {thing}."
            events = session.chat([{"role": "user", "content": request}], seed=seed)
            return "".join(event.text for event in events)

        for seed, (hero, thing) in enumerate(ASKED, 1):
            print(f"**Tell me a story about a {hero} and a {thing}.**\n")
            print("> " + tell(hero, thing, seed).replace("\n", "\n>\n> ") + "\n")
        pairs = list(itertools.product(HEROES, THINGS))
        found = [(hero in (told := tell(hero, thing, 1)), thing in told) for hero, thing in pairs]
        print(f"{len(pairs)} requests: the first word is in {sum(a for a, _ in found)} stories, "
              f"the second in {sum(b for _, b in found)}, both in {sum(a and b for a, b in found)}")  # fmt: skip


if __name__ == "__main__":
    main()
