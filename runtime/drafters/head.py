"""A head's chain, with other likely tokens beside each of its nodes: one draft call a round, whatever the depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.drafters.draw import BINS, USUAL, Acceptance, agreement, chances
from paceline.runtime.drafters.level_noise import LevelNoise, make_noise
from paceline.runtime.law import Law
from paceline.runtime.model.head import Features, Floats, Head, Ids
from paceline.runtime.ops.vocabulary import exp_sums, top_k
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree

_EXPLORES = 32
"""Rounds after which one level more is drafted than seems worth it: what is never drafted is never learnt of."""
_FEW, _MANY, _MANY_NODES = 4, 8, 16
"""Tokens of a level that are looked at, and those where more nodes than so many may be drafted."""


class HeadDrafter:
    """Drafts what a head reads from the target's hidden states.

    How deep follows from how often each depth was accepted, at first in its training, and from the prices of a level
    and a node. Picked tokens are a comb: the chain, and beside each of its nodes the next likeliest ones, best first by
    the product of their scores, as many as are worth their price. Draws (`rejection`, `block`) are the chain alone;
    whether a draw is proposed depends on its law and never on its value. Nothing is drafted where the hidden states of
    the last row are not known, or the scores are no numbers.
    """

    def __init__(self, head: Head, features: Features, name: str = "head") -> None:
        self.name = name
        self.needs = frozenset(head.model.part.reads)
        self._head, self._features = head, features
        self._noise: LevelNoise | None = None
        self._temperature = 0.0
        self._acceptance: Acceptance | None = None
        self._usual = head.model.part.accepted or [USUAL]
        self._learnt, self._rounds = Acceptance(self._usual), 0

    def footprint(self, limit: DraftLimit) -> int:
        """Its cache and the buffers of its passes and drafts."""
        model = self._head.model
        return model.cache.bytes + model.logit_bytes + self._head.bytes

    def begin(self, request: Request) -> None:
        """Draw as this request's rule wants it; the random state is this drafter's own."""
        rng = np.random.default_rng([request.seed, request.number, 3])
        self._noise, self._temperature = make_noise(request, self._head, rng), request.sampling.temperature
        self._acceptance = None if request.draft_dependent else self._learnt

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """A chain of up to `limit.depth` tokens, with siblings where they are picked."""
        noise, head, root = self._noise, self._head, tokens[-1]
        most = min(limit.nodes, limit.depth)
        if most <= 0 or noise is None or limit.price(1) > 1 or not head.read(tokens, self._features):
            return TokenTree.root(root)
        levels = self._worth(limit, most)
        noise.write(tokens, head.reach(levels))
        drafted, scores = head.draft(levels, root)
        drafted, scores = drafted[:most], scores[:most]
        if noise.sampled:
            return self._drawn(noise, root, drafted, scores, limit)
        return self._comb(noise.scale, root, drafted, scores, limit)

    def observe(self, outcome: Outcome) -> None:
        """What its scores came to; the hidden states of the text it fetches when it drafts."""
        self._rounds += 1
        if self._acceptance is not None:
            self._acceptance.learn(outcome, self.name)

    def reset(self) -> None:
        """Empty the cache."""
        self._head.forget()

    def _worth(self, limit: DraftLimit, most: int) -> int:
        """Levels that are worth drafting, by how often their depth was accepted."""
        known, chance, level = self._acceptance, 1.0, 0
        while level < most:
            usual = self._usual[min(level, len(self._usual) - 1)] if known is None else known.usual(level + 1)
            chance *= usual
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

    def _comb(self, scale: float, root: int, drafted: Ids, scores: Floats, limit: DraftLimit) -> TokenTree:
        """The best nodes that are worth it; none scores more than its parent, so none is orphaned."""
        places, values = top_k(scores, min(_MANY if limit.nodes > _MANY_NODES else _FEW, scores.shape[1]))
        ids, tops, known = self._head.ids[places].tolist(), values.tolist(), self._acceptance
        found: list[
            tuple[float, int, int, float]
        ] = []  # less its chance from the root on, level, rank, estimate
        weights = exp_sums(scores, [row[0] for row in tops], scale)
        above, least = 1.0, limit.price(1)
        for level, token in enumerate(drafted.tolist()):
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
