"""Trees of every kind over table models, and the loop that decodes with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product

import numpy as np
from toys import TableModel

from paceline.runtime.contracts import AcceptanceRule, Scored
from paceline.runtime.drafters.draw import Draw
from paceline.runtime.law import Law
from paceline.runtime.rules.laws import LawMaker
from paceline.runtime.tree import TokenTree

Rows = Callable[[Sequence[int]], np.ndarray]
Propose = Callable[[list[int]], TokenTree]


def rows_of(model: TableModel) -> Rows:
    """The model's rows, each computed once."""
    row = cache(lambda key: model.row(key))
    return lambda prefix: row(tuple(int(t) for t in prefix[-model.order :]))


def picked_tree(rng: np.random.Generator, root: int, vocab: int, nodes: int) -> TokenTree:
    """A tree of random shape and random tokens; siblings differ, nothing was sampled."""
    tokens, parents = [root], [-1]
    for _ in range(nodes):
        parent = int(rng.integers(len(tokens)))
        token = int(rng.integers(vocab))
        if all((p, t) != (parent, token) for p, t in zip(parents, tokens, strict=True)):
            tokens.append(token)
            parents.append(parent)
    return TokenTree.picked(tokens, parents, ["", *["picked"] * (len(tokens) - 1)])


def drawn_tree(draw: Draw, rows: Rows, history: Sequence[int], widths: Sequence[int]) -> TokenTree:
    """Every node of level d gets `widths[d]` children from `draw`."""
    tokens, parents, order = [int(history[-1])], [-1], [-1]
    dists: dict[int, Law] = {}
    level = [(0, list(history))]
    for width in widths:
        deeper = []
        for node, seen in level:
            children = draw.children(rows(seen), seen, width)
            if children.law is not None:
                dists[node] = children.law
            for place, token in enumerate(children.tokens):
                deeper.append((len(tokens), [*seen, token]))
                tokens.append(token)
                parents.append(node)
                order.append(place if children.law is not None else -1)
        level = deeper
    sources = ("", *["drawn"] * (len(tokens) - 1))
    return TokenTree(
        np.array(tokens, np.int64), np.array(parents, np.int32), np.array(order, np.int32), sources, dists
    )


def score(rows: Rows, tree: TokenTree, history: Sequence[int]) -> Scored:
    """The target's rows for every node of the tree."""
    seen: list[list[int]] = [list(history)]
    for node in range(1, len(tree)):
        seen.append([*seen[int(tree.parents[node])], int(tree.tokens[node])])
    return Scored(np.stack([rows(prefix) for prefix in seen]))


def decode(
    rule: AcceptanceRule,
    rows: Rows,
    propose: Propose,
    history: Sequence[int],
    count: int,
    rng: np.random.Generator,
) -> list[int]:
    """The first `count` tokens that speculative decoding emits after `history`."""
    tokens = list(history)
    while len(tokens) < len(history) + count:
        tree = propose(tokens)
        verdict = rule.judge(tree, score(rows, tree, tokens), tokens, rng)
        tokens += [int(tree.tokens[node]) for node in verdict.path[1:]]
        tokens.append(verdict.next_token)
    return tokens[len(history) : len(history) + count]


def plain(tokens: list[int]) -> TokenTree:
    """No draft at all."""
    return TokenTree.root(tokens[-1])


def exact_law(maker: LawMaker, rows: Rows, history: Sequence[int], vocab: int, count: int) -> np.ndarray:
    """float64[vocab ** count]: the joint law of the next `count` tokens by enumeration."""
    law = np.zeros((vocab,) * count)
    for words in product(range(vocab), repeat=count):
        chance, seen = 1.0, list(history)
        for token in words:
            chance *= maker.law(rows(seen), seen).of(token)
            if chance == 0:
                break
            seen.append(token)
        law[words] = chance
    return law.ravel()
