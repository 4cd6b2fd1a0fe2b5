"""Chains of the target's first layers: through a trained block (Kangaroo), or after the layer that pays most (DEL)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from paceline.runtime.contracts import DraftLimit, Outcome
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.model.exits import Exits
from paceline.runtime.model.head import Features
from paceline.runtime.request import Request
from paceline.runtime.tree import TokenTree

SHADOWS = 4
"""Places of a round at most at which a layer is asked what it would have drafted."""
_FADES, _FIRST = 0.95, 0.5
"""What a place counts once one more was seen, and the share of right tokens where none was."""


class ExitDrafter(ChainModel):
    """Drafts after one early layer, through a block that reads the hidden states behind it (Kangaroo, 2404.18911).

    Nothing is drafted where the hidden states of the last row are not known.
    """

    def __init__(self, exits: Exits, features: Features, vocab: int, name: str = "exit") -> None:
        super().__init__(exits, vocab, name)
        self.needs = frozenset(exits.reader.part.reads)
        self._exits, self._features = exits, features

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """A chain of up to `limit.depth` tokens."""
        if min(limit.nodes, limit.depth) <= 0 or not self._exits.catch_up(tokens, self._features):
            return TokenTree.root(tokens[-1])
        return super().propose(tokens, limit)


class LayerDrafter(ChainModel):
    """Drafts after the layer, and as many tokens, that promise most for their cost (DEL, 2504.05598).

    How often a layer is right it learns from what that layer would have drafted where the target chose a token itself,
    whoever drafted there: each round one layer, in turn. Costs are bytes and not seconds, so that what is chosen is a
    function of the text.
    """

    def __init__(self, exits: Exits, vocab: int, name: str = "exit") -> None:
        super().__init__(exits, vocab, name)
        self._exits = exits
        self._learnt_shares = self._shares = _Shares(exits.costs)
        self._rounds = 0

    def begin(self, request: Request) -> None:
        """See `ChainModel.begin`; what was learnt of layers in other answers chooses nothing where it may not."""
        super().begin(request)
        self._shares = _Shares(self._exits.costs) if request.draft_dependent else self._learnt_shares
        self._rounds = 0 if request.draft_dependent else self._rounds

    def propose(self, tokens: Sequence[int], limit: DraftLimit) -> TokenTree:
        """A chain of up to `limit.depth` tokens, none where no layer is worth a pass."""
        layer, depth = choose(self._shares.right, self._exits.costs, min(limit.nodes, limit.depth))
        if not depth:
            return TokenTree.root(tokens[-1])
        self._exits.layer = layer
        return super().propose(tokens, replace(limit, depth=depth))

    def observe(self, outcome: Outcome) -> None:
        """What its scores came to, and what one of the layers would have said."""
        super().observe(outcome)
        if not len(outcome.scored.logits):  # of a prompt the target has not said what it would choose
            return
        layer = list(self._exits.early)[self._rounds % len(self._exits.early)]
        self._rounds += 1
        path, chosen = list(outcome.verdict.path[:SHADOWS]), outcome.tokens[:SHADOWS]
        said = self._exits.said(layer, outcome.scored.extras[f"hidden.{layer}"][path])
        for token, drafted in zip(chosen, said.tolist(), strict=True):
            self._shares.learn(layer, token == drafted)


class _Shares:
    """By layer, how often the token that it would have drafted was the target's; older places fade."""

    def __init__(self, layers: Mapping[int, float]) -> None:
        self.right = dict.fromkeys(layers, _FIRST)
        self._seen = dict.fromkeys(layers, 1.0)

    def learn(self, layer: int, right: bool) -> None:
        """One place more."""
        self._seen[layer] = _FADES * self._seen[layer] + 1
        self.right[layer] += (right - self.right[layer]) / self._seen[layer]


def choose(right: Mapping[int, float], costs: Mapping[int, float], deepest: int) -> tuple[int, int]:
    """The layer and the length, at most `deepest`, that promise most tokens for what they cost; length 0 where no draft
    is worth a pass.

    right: by layer, the share of its tokens that the target chooses too. costs: of a draft pass, in passes of the
    target.
    """
    best, found = 1.0, (next(iter(costs)), 0)
    for layer, share in right.items():
        tokens = chance = 1.0
        for depth in range(1, deepest + 1):
            chance *= share
            tokens += chance
            if (worth := tokens / (1 + depth * costs[layer])) > best:
                best, found = worth, (layer, depth)
    return found
