"""All that is known of a pair of vocabularies; sessions over one loaded bundle share it."""

from __future__ import annotations

from functools import cached_property

from paceline.runtime.translation.mapping import map_vocabularies
from paceline.runtime.translation.ngrams import NgramCache
from paceline.runtime.translation.spelling import Spelling


class Sides:
    """The vocabulary of a draft model, that of the target, and what leads from one to the other."""

    def __init__(self, draft: Spelling, target: Spelling, ngrams: NgramCache) -> None:
        self.draft, self.target, self.ngrams = draft, target, ngrams
        self.mapping = map_vocabularies(draft, target)
        self._splits: dict[int, tuple[int, ...]] = {}

    @cached_property
    def unshared(self) -> frozenset[int]:
        """Draft tokens that the target lacks."""
        return frozenset((self.mapping.to_target < 0).nonzero()[0].tolist())

    def splits(self, piece: int) -> tuple[int, ...]:
        """Target tokens that spell a draft token without a counterpart; none where nothing does."""
        known = self._splits.get(piece)
        if known is None:
            spelled = self.draft.pieces[piece] if piece < len(self.draft) else None
            known = self._splits[piece] = tuple((self.target.cover(spelled) or ()) if spelled else ())
        return known
