"""Write requests for stories as JSONL: some to train a head of the storyteller with, others of stories it never saw.

    python tests/bench/story_requests.py OUT STORIES... [--train 6000] [--held-out 300]
    paceline export STORYTELLER TELLER --taps hidden.2,hidden.4,hidden.5,hidden
    paceline train head --method eagle3 --target TELLER --prompts OUT/train.jsonl HEAD --vocab 2048 --inner 512 --tied
    paceline bench -b BUNDLE --prompts OUT/held_out.jsonl --drafters none,chain,HEAD

STORIES are files as `paceline train lm --text` takes them. With those that the storyteller was trained on
(docs/storyteller.md) OUT/held_out.jsonl comes from stories that its training held out. No request stands in both.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from paceline.export.training.corpus import Source, begins, goes_in_circles, load_corpus
from paceline.export.training.instructions import noun_lexicon, pair_for
from paceline.runtime.bundle.whole_file import write_atomically


def requests(
    stories: Sequence[str],
    nouns: Mapping[str, float],
    most: int,
    rng: np.random.Generator,
    without: Collection[str] = (),
) -> list[str]:
    """Different requests that some of the stories answer, at most so many, in a random order."""
    found: dict[str, None] = {}
    for place in rng.permutation(len(stories)):
        story = stories[place]
        if len(found) < most and begins(story) and not goes_in_circles(story):
            asked = pair_for(story, nouns, rng).request
            if asked not in without:
                found[asked] = None
    return list(found)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("stories", nargs="+", type=Path)
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    corpus = load_corpus([Source(path) for path in given.stories])
    nouns, rng = noun_lexicon(corpus.train), np.random.default_rng(given.seed)
    train = requests(corpus.train, nouns, given.train, rng)
    held_out = requests(corpus.held_out, nouns, given.held_out, rng, set(train))
    given.out.mkdir(parents=True, exist_ok=True)
    for name, asked in (("train", train), ("held_out", held_out)):
        lines = (json.dumps({"category": "stories", "prompt": text}) + "\n" for text in asked)
        write_atomically(given.out / f"{name}.jsonl", "".join(lines).encode(), private=False)
        print(f"{given.out / name}.jsonl: {len(asked)} requests")


if __name__ == "__main__":
    main()
