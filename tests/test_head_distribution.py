"""Heads under the rules with real random numbers: decoded tokens against the target's law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("onnx")
from law_subjects import hidden_states
from test_distribution import COUNT, HISTORY, VOCAB, World, distance, world
from toy_heads import opened

from paceline.runtime.contracts import DraftLimit
from paceline.runtime.drafters.head import HeadDrafter
from paceline.runtime.law import Law
from paceline.runtime.request import Request, Sampling
from paceline.runtime.tree import TokenTree

IDS = (0, 1, 3)
"""The head does not know token 2."""
CHAIN = DraftLimit(3, 3)
HOT = Sampling(temperature=1.3)
BENT = Sampling(temperature=0.8, top_p=0.9, presence_penalty=0.5, logit_bias={1: 0.7})


@dataclass
class Headed:
    """Proposes by a head; every request is begun once."""

    attends: bool
    limit: DraftLimit = CHAIN
    kind: type[HeadDrafter] = HeadDrafter
    begun: Request | None = None

    def __post_init__(self) -> None:
        self.drafter = self.kind(opened(VOCAB, IDS, self.attends).head(), hidden_states())

    def __call__(self, w: World, tokens: list[int]) -> TokenTree:
        if self.begun != w.request:
            self.drafter.begin(w.request)
            self.begun = w.request
        return self.drafter.propose(tokens, self.limit)


@pytest.mark.parametrize("attends", [False, True])
@pytest.mark.parametrize("accept", ["coupled", "rejection", "block"])
@pytest.mark.parametrize("sampling", [HOT, BENT], ids=["hot", "bent"])
def test_a_head_keeps_the_law_of_the_target(sampling: Sampling, accept: str, attends: bool) -> None:
    proposed = Headed(attends)
    found, limit = distance(world(accept, sampling), proposed, 800)
    assert found < limit


@pytest.mark.slow
@pytest.mark.parametrize("limit", [DraftLimit(3, 3), DraftLimit(8, 3), DraftLimit(3, 3, 0.2, 0.3)])
@pytest.mark.parametrize("accept", ["coupled", "rejection", "block"])
@pytest.mark.parametrize("sampling", [HOT, BENT], ids=["hot", "bent"])
def test_a_head_keeps_the_law_in_larger_samples(sampling: Sampling, accept: str, limit: DraftLimit) -> None:
    found, most = distance(world(accept, sampling, 1), Headed(True, limit), 8000)
    assert found < most


class _Noisy(HeadDrafter):
    """States the law of the scores, noise and all."""

    def propose(self, tokens: list[int], limit: DraftLimit) -> TokenTree:  # type: ignore[override]
        assert self._noise is not None
        law = self._noise.law

        def of_scores(scores: np.ndarray, level: int) -> Law | None:
            return law(scores + self.head.kept[level], level)

        self._noise.law = of_scores  # type: ignore[method-assign]
        tree = super().propose(tokens, limit)
        self._noise.law = law  # type: ignore[method-assign]
        return tree


class _Choosy(HeadDrafter):
    """Drops a draw that it does not like."""

    def propose(self, tokens: list[int], limit: DraftLimit) -> TokenTree:  # type: ignore[override]
        tree = super().propose(tokens, limit)
        return TokenTree.root(tokens[-1]) if len(tree) > 1 and tree.tokens[1] == 0 else tree


@pytest.mark.parametrize("kind", [_Noisy, _Choosy])
def test_a_head_that_states_another_law_or_chooses_among_draws_is_seen(
    kind: Callable[..., HeadDrafter],
) -> None:
    found, limit = distance(world("rejection", HOT), Headed(True, kind=kind), 1600)  # type: ignore[arg-type]
    assert found > limit


def test_the_text_of_these_tests_is_one_that_the_head_reads() -> None:
    w = world("rejection", HOT)
    assert len(Headed(True)(w, HISTORY)) == 4
    assert COUNT == 2
