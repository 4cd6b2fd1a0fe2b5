"""What each form of the cache costs in perplexity, against a cache of fp32 over the same bundle and text.

    python tests/bench/cache_quality.py BUNDLE TEXT [TEXT ...] [--tokens 30000] [--held-out] [--start TOKEN]

TEXT: files of stories, as for `quality.py`; with --held-out only the hundredth that training leaves out. Every story is
scored from an empty cache behind the token --start (the bundle's own where it has one), by the graphs and kernels that
decoding uses. The error is one standard error of the change, over stories. Printed besides: how many rows keep their
best token.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path
from typing import get_args

import numpy as np
from quality import change
from tokenizers import Tokenizer

from paceline.export.training.corpus import read_stories
from paceline.memory.cache import CacheFormat
from paceline.runtime.bundle.bundle import Bundle, open_bundle
from paceline.runtime.bundle.precision import cache_form
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.perplexity import negative_log_likelihood
from paceline.runtime.tree import TokenTree

WIDTH = 64


def model_of(bundle: Bundle, form: CacheFormat | None, threads: int) -> Model:
    """The target with a cache in this form (None: the bundle's own)."""
    part, form = bundle.manifest.target, cache_form(bundle.manifest, form)
    graph = Graph(bundle.path(part.graph_for(form)), find_device("cpu"), threads, part)
    return Model(graph, part, part.context, WIDTH, WIDTH, cache=form)


def losses(
    bundle: Bundle, form: CacheFormat, stories: list[list[int]], threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of each story, in nats, and the best token of every row."""
    model = model_of(bundle, form, threads)
    found, best = np.empty(len(stories)), []
    for i, story in enumerate(stories):
        model.rewind(0)
        rows = []
        for at in range(0, len(story) - 1, WIDTH):
            chain = TokenTree.chain(story[at : min(at + WIDTH, len(story) - 1)])
            rows.append(model.score(chain).logits.copy())
            model.commit(tuple(range(len(chain))))
        logits = np.concatenate(rows)
        found[i] = negative_log_likelihood(logits, story[1:])
        best.append(logits.argmax(1))
    return found, np.concatenate(best)


def read(bundle: Bundle, texts: list[Path], start: str, tokens: int, held_out: bool) -> list[list[int]]:
    """Stories as token ids behind the start token, about `tokens` in all."""
    tokenizer, count = Tokenizer.from_file(str(bundle.path("tokenizer.json"))), 0
    first = tokenizer.token_to_id(start)
    if first is None:
        raise SystemExit(f"{bundle.manifest.name} has no token {start!r}: name one with --start")
    stories: list[list[int]] = []
    for story in dict.fromkeys(s for path in texts for s in read_stories(path)):
        if count < tokens and (not held_out or zlib.crc32(story.encode()) % 100 == 0):
            ids = tokenizer.encode(story, add_special_tokens=False).ids
            stories.append([first, *ids][: bundle.manifest.target.context])
            count += len(stories[-1]) - 1
    return stories


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=30000)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--start")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    bundle = open_bundle(chosen.bundle)
    start = chosen.start or bundle.generation.bos_token or "<s>"
    stories = read(bundle, chosen.texts, start, chosen.tokens, chosen.held_out)
    tokens = np.array([len(story) - 1 for story in stories])
    before, kept = losses(bundle, "fp32", stories, chosen.threads)
    perplexity = float(np.exp(before.sum() / tokens.sum()))
    print(f"{bundle.manifest.name}: {tokens.sum()} tokens in {len(stories)} stories\n")
    print("| cache | perplexity | change | same best token |\n|---|---|---|---|")
    print(f"| fp32 | {perplexity:.4f} | | |", flush=True)
    for form in get_args(CacheFormat)[1:]:
        after, best = losses(bundle, form, stories, chosen.threads)
        percent, error = change(before, after, tokens)
        print(
            f"| {form} | {perplexity * (1 + percent / 100):.4f} | {percent:+.4f} % (±{error:.4f}) | "
            f"{(best == kept).mean():.2%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
