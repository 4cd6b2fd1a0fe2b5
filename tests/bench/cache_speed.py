"""What each form of the cache costs in time: passes of some widths behind some contexts, against a cache of fp32.

    python tests/bench/cache_speed.py BUNDLE [--contexts 128,2048] [--widths 1,4,16] [--rounds 15] [--threads 1]

A round scores and commits a chain with every form in turn, so that drift hits all alike; printed are the median of
fp32 in milliseconds and the median ratio of the others to it, round by round. Writing the rows is part of the time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import get_args

import numpy as np

from paceline.memory.cache import CacheFormat
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.tree import TokenTree

FORMS: tuple[CacheFormat, ...] = get_args(CacheFormat)


def seconds(model: Model, context: int, tree: TokenTree) -> float:
    """One pass and its commit, `context` rows deep."""
    begun = time.perf_counter()
    model.score(tree)
    model.commit(tuple(range(len(tree))))
    taken = time.perf_counter() - begun
    model.rewind(context)
    return taken


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--contexts", default="128,2048")
    parser.add_argument("--widths", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    contexts, widths = ([int(n) for n in text.split(",")] for text in (chosen.contexts, chosen.widths))
    bundle = open_bundle(chosen.bundle)
    part, room = bundle.manifest.target, max(contexts) + max(widths)
    graphs = {
        f: Graph(bundle.path(part.graph_for(f)), find_device("cpu"), chosen.threads, part) for f in FORMS
    }
    models = {f: Model(graph, part, room, max(widths), cache=f) for f, graph in graphs.items()}
    ids = np.random.default_rng(0).integers(0, part.vocab, room).tolist()
    print(f"{bundle.manifest.name}, {chosen.threads} threads\n")
    print("| context | width | fp32, ms | " + " | ".join(f"{f} / fp32" for f in FORMS[1:]) + " |")
    print("|---|---|---|" + "---|" * (len(FORMS) - 1))
    for context in contexts:
        for model in models.values():
            model.prefill(ids[model.length : context])
        for width in widths:
            tree = TokenTree.chain(ids[context : context + width])
            times = [
                {f: seconds(m, context, tree) for f, m in models.items()} for _ in range(chosen.rounds + 2)
            ][2:]
            ratios = [f"{median(t[f] / t['fp32'] for t in times):.3f}" for f in FORMS[1:]]
            first = 1e3 * median(t["fp32"] for t in times)
            print(f"| {context} | {width} | {first:.2f} | " + " | ".join(ratios) + " |", flush=True)


if __name__ == "__main__":
    main()
