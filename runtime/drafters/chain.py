"""A draft model that continues the text by a chain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.drafters.draw import Acceptance, Draw, make_draw
from paceline.runtime.law import Law
from paceline.runtime.model.model import Model
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree


class ChainModel:
    """A draft model that continues the text by itself; it samples where the rule can use the law it drew from.

    It goes on while the chance that the next token is accepted, with all before it, is worth a pass and a node at
    the limit's prices (SpecDec++, 2405.19715). A last token that is not worth its node is left out if it was
    picked; one that was drawn stays, so the tree never depends on a drawn value that it leaves out. Chances are
    the draw's scores as they came true so far; where draws depend on nothing else they are the scores themselves.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, model: Model, vocab: int, name: str = "chain", seed: int = 0) -> None:
        self.name = name
        self._model, self._all, self._vocab = model, vocab, min(vocab, model.part.vocab)
        self._rng = np.random.default_rng([seed, 1])
        self._draw: Draw | None = None
        self._acceptance: Acceptance | None = None
        self._learnt = Acceptance()

    def footprint(self, limit: DraftLimit) -> int:
        """Its cache and the buffers of its passes."""
        return self._model.cache.bytes + self._model.logit_bytes

    def begin(self, request: Request) -> None:
        """Draw as this request's rule wants it; the random state is this drafter's own."""
        self._rng = np.random.default_rng([request.seed, request.number, 1])
        self._draw = make_draw(request, self._vocab, self._rng)
        self._acceptance = None if request.draft_dependent else self._learnt

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """A chain of up to `limit.depth` tokens."""
        model, draw = self._model, self._draw
        seen = model.readable(tokens, self._all)
        depth = min(limit.nodes, limit.depth, model.context - len(seen))
        if depth <= 0 or draw is None:
            return TokenTree.root(tokens[-1])
        row = model.read(seen)
        chain, scores, dists, history = [tokens[-1]], [1.0], dict[int, Law](), list(tokens)
        chance, known = 1.0, self._acceptance
        while True:
            drawn = draw.children(row[: self._vocab], history, 1)
            if not drawn.tokens:
                break
            level = len(chain)
            score = drawn.scores[0]
            chance *= score if known is None else known.chance(level, score)
            if chance < limit.price(level) and not draw.sampled:
                break
            if drawn.law is not None:
                dists[level - 1] = drawn.law
            chain.append(drawn.tokens[0])
            scores.append(score)
            following = chance if known is None else chance * known.usual(level + 1)
            if level >= depth or following < limit.step_price + limit.price(level + 1):
                break
            history.append(drawn.tokens[0])
            row = model.extend(history[-1:])
        return TokenTree.chain(chain, self.name, dists, scores)

    def observe(self, outcome: Outcome) -> None:
        """What its scores came to; the cache follows `tokens` by their longest common prefix."""
        if self._acceptance is not None:
            self._acceptance.learn(outcome, self.name)

    def reset(self) -> None:
        """Empty the cache."""
        self._model.rewind(0)
