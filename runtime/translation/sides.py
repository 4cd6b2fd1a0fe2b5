"""All that is known of a pair of vocabularies; sessions over one loaded bundle share it."""

from __future__ import annotations

from functools import cached_property

from paceline.runtime.translation.frame import Frame
from paceline.runtime.translation.mapping import map_vocabularies
from paceline.runtime.translation.ngrams import NGRAM_BYTES, NgramCache
from paceline.runtime.translation.spelling import Spelling

TOKEN_BYTES = 260
"""Of a pair of vocabularies, for each token of either one: its bytes, what finds them, and its counterpart."""


def sides_bytes(draft: int, target: int) -> int:
    """What a pair takes in memory at most. draft, target: tokens."""
    return TOKEN_BYTES * (draft + target) + NGRAM_BYTES


class Sides:
    """The vocabulary of a draft model, that of the target, and what leads from one to the other.

    frame: of chats as the draft model reads them; None reads the target's frame as text.
    """

    def __init__(
        self, draft: Spelling, target: Spelling, ngrams: NgramCache, frame: Frame | None = None
    ) -> None:
        self.draft, self.target, self.ngrams, self.frame = draft, target, ngrams, frame
        self.mapping = map_vocabularies(draft, target)
        self.to_target: list[int] = self.mapping.to_target.tolist()
        self.to_draft: list[int] = self.mapping.to_draft.tolist()
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

    def prefill(self, share: float = 0.5) -> None:
        """Learn the runs of the target's first tokens, its most frequent ones, up to a share of the budget."""
        most = share * self.ngrams.most_bytes
        for token, piece in enumerate(self.target.pieces):
            if self.ngrams.nbytes > most:
                return
            if piece and self.to_draft[token] < 0 and (run := self.draft.cover(piece)):
                self.ngrams.suppose(token, run)
