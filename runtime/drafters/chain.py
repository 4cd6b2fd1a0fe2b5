"""A draft model that continues the text by a chain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.drafters.draw import Acceptance, Draw, GreedyDraw, corrected, make_draw
from paceline.runtime.drafters.level_noise import make_noise
from paceline.runtime.drafters.levels import Continuing, Leaps
from paceline.runtime.law import Law
from paceline.runtime.model.unrolled import Unrolled
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree


class ChainModel:
    """A draft model that continues the text by itself; it samples where the rule can use the law it drew from.

    It goes on while the chance that the next token is accepted, with all before it, is worth a pass and a node at
    the limit's prices (SpecDec++, 2405.19715). A last token that is not worth its node is left out if it was
    picked; one that was drawn stays, so the tree never depends on a drawn value that it leaves out. Chances are
    the draw's scores as they came true so far; where draws depend on nothing else they are the scores themselves.
    Where the model predicts acceptance, its own scores are corrected by that.
    Where there are graphs for several levels, and the best token is what is proposed, a call drafts as many levels as
    are worth it by what is usual; what is proposed is the same.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        model: Continuing,
        vocab: int,
        name: str = "chain",
        seed: int = 0,
        unrolled: Unrolled | None = None,
    ) -> None:
        self.name = name
        self._model, self._all, self._vocab = model, vocab, min(vocab, model.part.vocab)
        self._unrolled = unrolled
        self._leaps: Leaps | None = None
        self._rng = np.random.default_rng([seed, 1])
        self._draw: Draw | None = None
        self._acceptance: Acceptance | None = None
        self._learnt = Acceptance()

    def footprint(self, limit: DraftLimit) -> int:
        """What its model takes, and the buffers of its drafts."""
        return self._model.bytes + (0 if self._unrolled is None else self._unrolled.bytes)

    def begin(self, request: Request) -> None:
        """Draw as this request's rule wants it; the random state is this drafter's own."""
        self._rng = np.random.default_rng([request.seed, request.number, 1])
        draw = make_draw(request, self._vocab, self._rng)
        self._draw = draw
        self._acceptance = None if request.draft_dependent else self._learnt
        self._leaps = self._leaping(request, draw)

    def _leaping(self, request: Request, draw: Draw) -> Leaps | None:
        """Several levels a call, where a graph can tell what is chosen: the best of logits and what is known before."""
        if self._unrolled is None or not isinstance(draw, GreedyDraw) or self._vocab < self._model.part.vocab:
            return None
        if request.sampling.repetition_penalty != 1:
            return None
        return Leaps(self._unrolled, draw, make_noise(request, self._unrolled, self._rng))

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """A chain of up to `limit.depth` tokens."""
        model, draw, leaps = self._model, self._draw, self._leaps
        seen = model.readable(tokens, self._all)
        depth = min(limit.nodes, limit.depth, model.context - len(seen))
        if depth <= 0 or draw is None:
            return TokenTree.root(tokens[-1])
        if leaps is None:
            drawn = draw.children(model.read(seen), tokens, 1)
        else:
            drawn = leaps.first(seen, tokens, self._worth(limit, 1, depth, 1.0))
        chain, scores, dists, history = [tokens[-1]], [1.0], dict[int, Law](), list(tokens)
        chance, known = 1.0, self._acceptance
        while drawn.tokens:
            level = len(chain)
            score = drawn.scores[0]
            if odds := model.odds if leaps is None else leaps.odds:
                score = corrected(score, odds)
            chance *= score if known is None else known.chance(level, score)
            if chance < limit.price(level) and not draw.sampled:
                break
            if drawn.law is not None:
                dists[level - 1] = drawn.law
            chain.append(drawn.tokens[0])
            scores.append(score)
            following = chance if known is None else chance * known.usual(level + 1)
            ready = leaps is not None and leaps.ready(chain[-1])
            step = 0.0 if ready else limit.step_price
            if level >= depth or following < step + limit.price(level + 1):
                break
            history.append(chain[-1])
            if leaps is None:
                drawn = draw.children(model.extend([chain[-1]]), history, 1)
            else:
                more = 0 if ready else self._worth(limit, level + 1, depth, chance)
                drawn = leaps.after(chain[-1], history, more)
        return TokenTree.chain(chain, self.name, dists, scores)

    def _worth(self, limit: DraftLimit, first: int, most: int, chance: float) -> int:
        """Levels from the `first` one on that are worth a pass and a node by what is usual; that one is in any case.

        chance: that all before it are accepted.
        """
        known, level = self._acceptance, first
        while known is not None and level < most:
            chance *= known.usual(level)
            if chance * known.usual(level + 1) < limit.step_price + limit.price(level + 1):
                break
            level += 1
        return level - first + 1

    def observe(self, outcome: Outcome) -> None:
        """What its scores came to; the cache follows `tokens` by their longest common prefix."""
        if self._acceptance is not None:
            self._acceptance.learn(outcome, self.name)

    def reset(self) -> None:
        """Empty the cache."""
        self._model.rewind(0)
