"""What the recipe of `paceline train head` rests on: small heads for the storyteller, one thing changed at a time.

    python tests/bench/head_recipes.py STORIES... [--only NAME,NAME] [--epochs 6] [--prompt 60]

The first 60 tokens of 75 stories, with which the storyteller goes on for 40 tokens; measured on 40 others. So few
answers are what heads on small machines have, too. About 20 s of one processor a line.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from head_lessons import TAPS, continued, encoded  # noqa: E402

from paceline.embedded import embedded_bundle  # noqa: E402
from paceline.export.training.corpus import read_stories  # noqa: E402
from paceline.export.training.heads.choice import Choice, read_by  # noqa: E402
from paceline.export.training.heads.course import make_course  # noqa: E402
from paceline.export.training.heads.measure import Yardstick  # noqa: E402
from paceline.export.training.heads.trainer import Recipe, train_head  # noqa: E402
from paceline.runtime.bundle.bundle import open_bundle  # noqa: E402

ANSWER, LEARNT, MEASURED = 40, 75, 40
USUAL = Recipe(epochs=6, rate=4e-3, levels=3, share=0.25, warm_up=10, save_seconds=1e9)
VARIANTS: dict[str, tuple[Recipe, str, float]] = {
    "usual": (USUAL, "eagle3", 0.0),
    "rate 1e-3": (replace(USUAL, rate=1e-3), "eagle3", 0.0),
    "rate 2e-3": (replace(USUAL, rate=2e-3), "eagle3", 0.0),
    "rate 8e-3": (replace(USUAL, rate=8e-3), "eagle3", 0.0),
    "features 0": (replace(USUAL, features=0.0), "eagle3", 0.0),
    "features 10": (replace(USUAL, features=10.0), "eagle3", 0.0),
    "prompts too": (USUAL, "eagle3", 1.0),
    "share 1": (replace(USUAL, share=1.0), "eagle3", 0.0),
    "lk": (replace(USUAL, loss="lk"), "eagle3", 0.0),
    "hydra": (USUAL, "hydra", 0.0),
    "medusa": (USUAL, "medusa", 0.0),
    "eagle": (replace(USUAL, levels=1, features=10.0), "eagle", 0.0),
    "eagle unrolled": (replace(USUAL, features=10.0), "eagle", 0.0),
    "dflash": (USUAL, "dflash", 0.0),
    "clover": (USUAL, "clover", 0.0),
    "falcon": (USUAL, "falcon", 0.0),
    "kangaroo": (USUAL, "kangaroo", 0.0),
}


def main() -> None:
    """Train, and print a line of Markdown each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stories", nargs="+", type=Path)
    parser.add_argument("--only", default=",".join(VARIANTS))
    parser.add_argument("--epochs", type=float, default=USUAL.epochs)
    parser.add_argument("--prompt", type=int, default=60)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    texts = [ids for file in asked.stories for ids in encoded(read_stories(file)[: 2 * (LEARNT + MEASURED)])]
    long = [ids[: asked.prompt] for ids in texts if len(ids) > asked.prompt]
    length = asked.prompt + ANSWER
    talks = continued(long[: LEARNT + MEASURED], length)
    bundle = open_bundle(embedded_bundle())
    print("| | right by level | alpha by level | tokens a round | processor, s |\n|---|---|---|---|---|")
    for name in asked.only.split(","):
        recipe, method, prompts = VARIANTS[name]
        recipe = replace(recipe, epochs=asked.epochs)
        choice = Choice(method, vocab=1024, depth=3, inner=512)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            learnt = talks[:LEARNT]
            taps = read_by(method, TAPS, bundle.manifest.target.layers)
            made = make_course(Path(folder), bundle, choice, learnt, taps, 600, length, 0, prompts, TAPS)
            reads = [len(TAPS)] if method == "eagle" else [TAPS.index(tap) for tap in taps]
            yardstick = Yardstick(talks[LEARNT:], made.target, made.head.vocabulary, reads, length)
            begun = time.process_time()
            last = train_head(made.head, made.target, made.batches, yardstick, recipe, Path(folder))
        shares = (" ".join(f"{share:.3f}" for share in by) for by in (last.accepted, last.alpha))
        spent = time.process_time() - begun
        print(f"| {name} | {' | '.join(shares)} | {last.round_tokens} | {spent:.0f} |", flush=True)


if __name__ == "__main__":
    main()
