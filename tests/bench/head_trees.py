"""Tokens a round that a head's drafts would bring, by the shape of its trees, over answers that its target gave.

    python tests/bench/head_trees.py BUNDLE ANSWERS [--head NAME] [--nodes 8,16,32] [--most 40]

ANSWERS: a folder of `paceline train head`, of the same target, that the head has not learnt from. Each greedy answer is
walked through as decoding does: a round brings the longest path of the tree that the answer goes along with, and one
token more. No price is asked; milliseconds are those of drafting.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from paceline.export.training.answers import Answers
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.contracts import Drafter, DraftLimit, Outcome, Scored, Verdict
from paceline.runtime.drafters.head import Growth, HeadDrafter
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.head import Head, Shape
from paceline.runtime.model.model import Model
from paceline.runtime.model.taps import TapBuffer
from paceline.runtime.request import Request, Sampling
from paceline.runtime.tree import TokenTree

CONTEXT = 1024


class Always:
    """Offers one graph, whatever it costs."""

    def __init__(self, shape: Shape | None) -> None:
        self._shape = shape

    def best(self, limit: DraftLimit, levels: int, most: int) -> Shape | None:
        return self._shape

    def learn(self, outcome: Outcome, source: str) -> None:
        pass


class Chain(HeadDrafter):
    """Drafts a chain and nothing beside it."""

    def propose(self, tokens: list[int], limit: DraftLimit) -> TokenTree:
        comb = super().propose(tokens, DraftLimit(64, limit.depth))
        node, path = 0, [0]
        while (children := comb.children(node)) and len(path) <= limit.depth:
            node = children[0]
            path.append(node)
        return comb.prune(path)


def walk(drafter: Drafter, text: list[int], prompt: int, limit: DraftLimit) -> tuple[int, int, float]:
    """Tokens, rounds and seconds of drafting of one answer."""
    at = begun = prompt + 1
    rounds, seconds = 0, 0.0
    drafter.begin(Request(Sampling(), "coupled", 0, 0, prompt))
    while at < len(text):
        start = time.perf_counter()
        tree = drafter.propose(text[:at], limit)
        seconds += time.perf_counter() - start
        path, node = [0], 0
        while at + len(path) <= len(text):
            expected = text[at + len(path) - 1] if at + len(path) - 1 < len(text) else -1
            node = next((c for c in tree.children(node) if tree.tokens[c] == expected), -1)
            if node < 0:
                break
            path.append(node)
        verdict = Verdict(tuple(path), 0, len(path))
        drafter.observe(Outcome(tree, Scored(np.zeros((len(tree), 1), np.float32)), verdict))
        rounds, at = rounds + 1, at + len(path)
    return at - begun, rounds, seconds


def contenders(head: Head, nodes: int) -> Iterator[tuple[str, DraftLimit, Callable[..., Drafter]]]:
    """Names, limits, and how to make each drafter."""
    deepest = head.depths[-1]

    def made(shape: Shape | None, growth: Growth = "dynamic") -> Callable[..., Drafter]:
        def make(features: TapBuffer) -> Drafter:
            drafter = HeadDrafter(head, features, growth=growth)
            drafter._offers = Always(shape)  # type: ignore[assignment]
            return drafter

        return make

    for depth in sorted({4, deepest}):
        if depth in head.depths and depth <= nodes:
            yield f"chain of {depth}", DraftLimit(depth, depth), lambda f: Chain(head, f)
    for depth in sorted({4, deepest}):
        yield f"comb over {depth}", DraftLimit(nodes, depth), made(None)
    for shape in head.trees:
        yield f"tree {shape.depth}x{shape.width}", DraftLimit(nodes, deepest), made(shape)
    yield "static", DraftLimit(nodes, min(4, deepest)), made(None, "static")


def main() -> None:
    """Print a table of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--head")
    parser.add_argument("--nodes", default="8,16")
    parser.add_argument("--most", type=int, default=40, help="answers")
    parser.add_argument(
        "--comb", action="store_true", help="of a head whose levels know nothing of each other"
    )
    asked = parser.parse_args()
    bundle, answers = open_bundle(asked.bundle), Answers(asked.answers)
    name = asked.head or next(n for n, p in bundle.manifest.drafters.items() if p.kind == "head")
    part, device = bundle.manifest.drafters[name], find_device("cpu")
    if asked.comb:
        part = msgspec.structs.replace(part, product=False)
    graphs = {path: Graph(bundle.path(path), device, 1, part) for path in part.graphs_for("fp32")}
    model = Model(graphs[part.graph], part, CONTEXT, 1, 256)
    head = Head(model, bundle.draft_ids(part), lambda path: graphs[path])
    warm = answers.index.wish.temperatures
    talks = []
    for shard in answers._shards:
        for number, talk in zip(*answers._read(shard), strict=True):
            if not warm[number % len(warm)] and len(talk.tokens) < CONTEXT:
                talks.append(talk)
    talks = talks[-asked.most :]
    places = [answers.taps.index(tap) for tap in part.reads]
    print(f"{len(talks)} answers, {sum(len(t.tokens) - t.prompt - 1 for t in talks)} tokens")
    print("| nodes | shape | tokens a round | ms a draft |\n|---|---|---|---|")
    for nodes in map(int, asked.nodes.split(",")):
        for title, limit, make in contenders(head, nodes):
            features = TapBuffer(part.reads, bundle.manifest.target.hidden, CONTEXT)
            drafter = make(features)
            tokens = rounds = 0
            seconds = 0.0
            for talk in talks:
                features.cut(0)
                rows = {tap: talk.taps[:, at] for tap, at in zip(part.reads, places, strict=True)}
                features.write(0, rows, slice(None))
                found = walk(drafter, talk.tokens.tolist(), talk.prompt, limit)
                tokens, rounds, seconds = tokens + found[0], rounds + found[1], seconds + found[2]
            print(f"| {nodes} | {title} | {tokens / rounds:.3f} | {1e3 * seconds / rounds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
