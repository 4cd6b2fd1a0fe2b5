"""A head's tree of drafts, or a streaming draft model's: one draft call a round, whatever the depth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import isnan
from operator import mul
from typing import Literal, NamedTuple

import numpy as np

from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.drafters.draw import BINS, USUAL, Acceptance, agreement, chances
from paceline.runtime.drafters.level_noise import LevelNoise, make_noise
from paceline.runtime.drafters.offers import Offers
from paceline.runtime.drafters.ranks import Ranks
from paceline.runtime.drafters.shapes import Node, best_branches, best_product, best_static, static_count
from paceline.runtime.law import Law
from paceline.runtime.model.head import Branches, Features, Floats, Head, Ids, Shape
from paceline.runtime.model.streams import Streams
from paceline.runtime.ops.vocabulary import best_of
from paceline.runtime.part import CHILDREN
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree

Growth = Literal["dynamic", "static"]
"""How a tree is chosen: by the head's own chances, or by those of depth and rank alone."""
_EXPLORES = 32
"""Rounds after which one level more is drafted than seems worth it: what is never drafted is never learnt of."""
_RELAID = 64
"""Rounds after which static trees are made anew."""


class Levels(NamedTuple):
    """Levels of a chain behind a root. chosen: the token of each. ids, tops: of each the best ids of the target, and
    their scores; weights: of all tokens. Chances are in proportion to `exp(scale * score)`, see `chances`.
    """

    chosen: list[int]
    ids: list[list[int]]
    tops: list[list[float]]
    weights: list[float]
    scale: float

    def part(self, start: int, stop: int | None = None) -> Levels:
        """Some levels of them."""
        at, (chosen, ids, tops, weights, scale) = slice(start, stop), self
        return Levels(chosen[at], ids[at], tops[at], weights[at], scale)

    def at(self, level: int) -> list[tuple[int, float]]:
        """The best tokens of a level, and their chances."""
        return list(
            zip(self.ids[level], chances(self.tops[level], self.weights[level], self.scale), strict=False)
        )


class HeadDrafter:
    """Drafts what a head reads from the target's hidden states, or a streaming draft model from the text.

    How deep follows from how often each depth was accepted, at first in its training, and from the prices of a level
    and a node. Picked tokens are a tree: of a graph that drafts a tree, of all paths where no level knows what the
    others chose, or else a comb, the chain and beside each of its nodes the next likeliest ones. The best by the
    product of their scores stay, as many as are worth their price. Which graph runs is a matter of price, too. With
    static growth the tree has the shape that is best by how often each rank of each depth was accepted. Draws
    (`rejection`, `block`) are the chain alone; whether a draw is proposed depends on its law and never on its value.
    Nothing is drafted where the hidden states of the last row are not known, or the scores are no numbers.
    """

    def __init__(
        self,
        head: Head | Streams,
        features: Features | None,
        name: str = "head",
        growth: Growth = "dynamic",
    ) -> None:
        self.name = name
        self.needs = frozenset(head.model.part.reads)
        self.head, self._features, self._growth = head, features, growth
        self._noise: LevelNoise | None = None
        self._temperature = 0.0
        self._acceptance: Acceptance | None = None
        part = head.model.part
        self._usual = part.accepted or [USUAL]
        self._learnt, self._rounds = Acceptance(self._usual), 0
        self._ranks, self._measured = (Ranks(part.ranks, part.accepted) for _ in range(2))
        self._offers = Offers(head, self._ranks)
        self._laid: dict[tuple[int, int, bool], tuple[list[float], list[list[Node]]]] = {}

    @property
    def noise(self) -> LevelNoise | None:
        """That of the answer."""
        return self._noise

    def footprint(self, limit: DraftLimit) -> int:
        """Its cache and the buffers of its passes and drafts."""
        model = self.head.model
        return model.cache.bytes + model.logit_bytes + self.head.bytes

    def begin(self, request: Request) -> None:
        """Draw as this request's rule wants it; the random state is this drafter's own."""
        rng = np.random.default_rng([request.seed, request.number, 3])
        self._noise, self._temperature = make_noise(request, self.head, rng), request.sampling.temperature
        self._acceptance = None if request.draft_dependent else self._learnt

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """A tree of up to `limit.depth` levels, a chain where it is drawn."""
        noise, head, root = self._noise, self.head, tokens[-1]
        most = min(limit.nodes, limit.depth)
        if most <= 0 or noise is None or limit.price(1) > 1 or not head.read(tokens, self._features):
            return TokenTree.root(root)
        levels = self.worth(limit, most)
        shape = None
        if self._acceptance is not None and not noise.sampled and self._growth == "dynamic":
            shape = self._offers.best(limit, head.reach(levels), most)
        if shape is not None and isinstance(head, Head):
            noise.write(tokens, shape.depth)
            grown = head.draft_tree(shape, root, noise.scale)
            return self._branched(root, grown, shape, self._acceptance, limit)
        noise.write(tokens, head.reach(levels))
        drafted, scores = head.draft(levels, root)
        drafted, scores = drafted[:most], scores[:most]
        if noise.sampled:
            return self._drawn(noise, root, drafted, scores, limit)
        return self.laid(root, self.levels(drafted, scores), limit)

    def laid(self, root: int, levels: Levels, limit: DraftLimit) -> TokenTree:
        """The tree of levels that were picked."""
        if self._growth == "static":
            return self._static(root, levels, limit)
        if self.head.model.part.product:
            return self._product(root, levels, limit)
        return self.comb(root, levels, self._acceptance, limit)

    def observe(self, outcome: Outcome) -> None:
        """What its scores came to; the hidden states of the text it fetches when it drafts."""
        self._rounds += 1
        if self._acceptance is not None:
            self._acceptance.learn(outcome, self.name)
            self._offers.learn(outcome, self.name)
            self._ranks.learn(outcome, self.name)
        if self._rounds % _RELAID == 0:
            self._laid.clear()

    def reset(self) -> None:
        """Empty the cache."""
        self.head.forget()

    def expected(self, limit: DraftLimit, most: int) -> float:
        """Accepted tokens of a chain of as many levels as are worth it."""
        return along(map(self._usually, range(1, self.worth(limit, most) + 1)))

    def _usually(self, level: int) -> float:
        known = self._acceptance
        return self._usual[min(level, len(self._usual)) - 1] if known is None else known.usual(level)

    def worth(self, limit: DraftLimit, most: int) -> int:
        """Levels that are worth drafting, by how often their depth was accepted."""
        known, chance, level = self._acceptance, 1.0, 0
        while level < most:
            chance *= self._usually(level + 1)
            if level and chance < limit.step_price + limit.price(level + 1):
                break
            level += 1
        explores = known is not None and self._rounds % _EXPLORES == 0
        return min(level + explores, most)

    def _drawn(
        self, noise: LevelNoise, root: int, drafted: Ids, scores: Floats, limit: DraftLimit
    ) -> TokenTree:
        """The chain with its laws, as far as these promise what it costs."""
        chain, own, dists, chance = [root], [1.0], dict[int, Law](), 1.0
        for level, token in enumerate(drafted.tolist()):
            law = noise.law(scores, level)
            if law is None or not law.of(token):
                break
            own.append(agreement(law, self._temperature))
            chance *= own[-1]
            if chance < limit.price(level + 1):
                break
            dists[level] = law
            chain.append(token)
        return TokenTree.chain(chain, self.name, dists, own[: len(chain)])

    def _branched(
        self, root: int, grown: Branches, shape: Shape, known: Acceptance | None, limit: DraftLimit
    ) -> TokenTree:
        """The best nodes of a drafted tree that are worth it."""
        estimates = np.exp(grown.chances)
        if not estimates[0, 0] > 0:
            return TokenTree.root(root)
        estimates = np.minimum(np.nan_to_num(estimates, nan=0.0), 1.0)
        corrected = estimates
        if known is not None:
            tables = np.array([known.bins(level) for level in range(1, shape.depth + 1)])
            levels = np.repeat(np.arange(shape.depth), [1, *[shape.width] * (shape.depth - 1)])
            corrected = tables[levels[:, None], (estimates * BINS).astype(np.intp)]
            corrected = np.minimum.accumulate(np.where(estimates > 0, corrected, 0.0), axis=1)
        places, parents = best_branches(grown, corrected, shape.width, limit)
        tokens, own = grown.tokens.ravel()[places].tolist(), estimates.ravel()[places].tolist()
        return self._tree([root, *tokens], [-1, *parents], [1.0, *own])

    def _product(self, root: int, levels: Levels, limit: DraftLimit) -> TokenTree:
        """The best paths through the likeliest tokens of all levels."""
        drafted, ids, tops, weights, scale = levels
        estimates, corrected = list[list[float]](), list[list[float]]()
        for level, token in enumerate(drafted):
            own = list(chances(tops[level], weights[level], scale)) if ids[level][0] == token else []
            if not own:
                break
            bins = None if self._acceptance is None else self._acceptance.bins(level + 1)
            best, row = 1.0, list[float]()
            for estimate in own:
                best = min(best, bins[int(estimate * BINS)] if bins else estimate)
                row.append(best)
            estimates.append(own)
            corrected.append(row)
        return self._laid_out(root, ids, best_product(corrected, limit), estimates)

    def _static(self, root: int, levels: Levels, limit: DraftLimit) -> TokenTree:
        """The tree that is best by depth and rank, of as many nodes as are worth their price."""
        drafted, ids, _, weights, _ = levels
        depth = 0
        while depth < len(drafted) and not isnan(weights[depth]) and ids[depth][0] == drafted[depth]:
            depth += 1
        learnt = self._acceptance is not None
        ranks, key = self._ranks if learnt else self._measured, (depth, limit.nodes, learnt)
        by_rank = [ranks.at(level + 1)[: len(ids[0])] for level in range(depth)]
        if key not in self._laid:
            best = best_static(by_rank, limit.nodes, spine=not self.head.model.part.product)
            self._laid[key] = [value for value, _ in best], [nodes for _, nodes in best]
        gains, trees = self._laid[key]
        return self._laid_out(root, ids, trees[static_count(gains, limit)], by_rank)

    def _laid_out(
        self, root: int, ids: list[list[int]], nodes: Sequence[Node], own: Sequence[Sequence[float]]
    ) -> TokenTree:
        """The tree of nodes that levels and ranks stand for."""
        tokens = [root, *(ids[node.level][node.rank] for node in nodes)]
        scores = [1.0, *(own[node.level][node.rank] for node in nodes)]
        return self._tree(tokens, [-1, *(node.parent for node in nodes)], scores)

    def _tree(self, tokens: list[int], parents: list[int], own: list[float]) -> TokenTree:
        return TokenTree.picked(tokens, parents, ["", *[self.name] * (len(tokens) - 1)], own)

    def levels(self, drafted: Ids, scores: Floats) -> Levels:
        """What was drafted, as a tree is made of it."""
        scale = 1.0 if self._noise is None else self._noise.scale
        places, values, weights = best_of(scores, min(CHILDREN, scores.shape[1]), scale)
        return Levels(drafted.tolist(), self.head.ids[places].tolist(), values.tolist(), weights, scale)

    def said(self, text: Sequence[int], rows: Floats) -> Levels:
        """Levels behind a text, as this answer picks them of rows float32[D, V] that were said without noise."""
        ids, noise = self.head.ids, self._noise
        if noise is None:
            raise RuntimeError("levels are picked for an answer, and none has begun")
        noise.write(text, len(rows))
        scores = rows[:, : len(ids)] + self.head.noise[: len(rows)]
        return self.levels(scores.argmax(axis=1), scores)

    def comb(self, root: int, levels: Levels, known: Acceptance | None, limit: DraftLimit) -> TokenTree:
        """The best nodes that are worth it; none scores more than its parent, so none is orphaned."""
        drafted, ids, tops, weights, scale = levels
        found: list[
            tuple[float, int, int, float]
        ] = []  # less its chance from the root on, level, rank, estimate
        above, least = 1.0, limit.price(1)
        for level, token in enumerate(drafted):
            if not above or above < least or ids[level][0] != token:
                break
            bins, best, below = None if known is None else known.bins(level + 1), above, 0.0
            for rank, estimate in enumerate(chances(tops[level], weights[level], scale)):
                chance = above * (bins[int(estimate * BINS)] if bins else estimate)
                best = chance if chance < best else best
                if best < least:
                    break
                found.append((-best, level, rank, estimate))
                below = below if rank else best
            above = below
        found.sort()
        chosen = [node for rank, node in enumerate(found[: limit.nodes], 1) if -node[0] >= limit.price(rank)]
        chosen.sort(key=lambda node: node[1:3])
        tokens, parents, own, above_at = [root], [-1], [1.0], [0]
        for _, level, rank, estimate in chosen:
            if rank == 0:
                above_at.append(len(tokens))
            tokens.append(ids[level][rank])
            parents.append(above_at[level])
            own.append(estimate)
        if len(above_at) == len(tokens):
            return TokenTree.chain(tokens, self.name, scores=own)
        return TokenTree.picked(tokens, parents, ["", *[self.name] * len(chosen)], own)


def along(chances: Iterable[float]) -> float:
    """Accepted tokens of a chain, by the chance of each that is accepted if all before it are."""
    return sum(accumulate(chances, mul), 0.0)
