"""Two small vocabularies that spell the same letters otherwise, and drafters of one for a target of the other."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.runtime.contracts import Drafter
from paceline.runtime.drafters.words import Translation
from paceline.runtime.translation.border import Border
from paceline.runtime.translation.crossing import Crossing
from paceline.runtime.translation.ngrams import NgramCache
from paceline.runtime.translation.sides import Sides
from paceline.runtime.translation.spelling import Spelling

TARGET = (b"a", b"b", b"ab", b"ba", b"c", b"aba")
DRAFT = (b"a", b"b", b"c", b"bc", b"cab")
"""`bc` and `cab` are no tokens of the target, `ab`, `ba` and `aba` none of the draft model."""


def spelling(pieces: Sequence[bytes | None], **roles: int) -> Spelling:
    """Whose tokenizer takes the longest token from the left, the first of those that spell the same."""
    lowest = {piece: at for at, piece in reversed(list(enumerate(pieces)))}
    makes = Spelling(
        tuple([piece if lowest[piece] == at else None for at, piece in enumerate(pieces)]), lambda text: []
    )

    def encode(text: str) -> list[int]:
        return makes._longest_first(text.encode()) or []

    return Spelling(tuple(pieces), encode, dict(roles), frozenset({roles["end"]} if "end" in roles else ()))


def sides(
    draft: Sequence[bytes | None] = DRAFT, target: Sequence[bytes | None] = TARGET, learnt: bool = True
) -> Sides:
    """learnt: all runs of the n-gram cache are known from the start."""
    made = Sides(spelling(draft), spelling(target), NgramCache(100_000))
    for token, piece in enumerate(target):
        if learnt and piece and made.mapping.to_draft[token] < 0 and (run := made.draft.cover(piece)):
            made.ngrams.learn(token, run)
    return made


def across(
    drafter: Drafter,
    translation: Translation = "ngram",
    learnt: bool = True,
    crossing: Crossing | None = None,
) -> Border:
    """A drafter whose first tokens are those of DRAFT, for a target whose tokens are those of TARGET."""
    return Border(drafter, sides(learnt=learnt), translation, 1000, crossing)
