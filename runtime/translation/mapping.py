"""Which token of one vocabulary is which of another: the same bytes, or the same part in a text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.runtime.translation.spelling import Spelling

Ids = npt.NDArray[np.int32]
NONE = -1


@dataclass(frozen=True, slots=True)
class VocabularyMap:
    """Direct maps between a draft model's vocabulary and the target's (2507.02659, section 3.1).

    to_target: int32[draft vocabulary], to_draft: int32[target vocabulary]; -1 where there is no such token.
    """

    to_target: Ids
    to_draft: Ids

    @property
    def shared(self) -> int:
        """Draft tokens that are tokens of the target, too."""
        return int((self.to_target >= 0).sum())


def map_vocabularies(draft: Spelling, target: Spelling) -> VocabularyMap:
    """Match the tokens of two vocabularies by their bytes, and those without bytes by what they do."""
    to_target, to_draft = _matched(draft, target), _matched(target, draft)
    for role, token in draft.roles.items():
        if role in target.roles:
            to_target[token], to_draft[target.roles[role]] = target.roles[role], token
    for side, other, mapped in ((draft, target, to_target), (target, draft, to_draft)):
        if "end" in other.roles:
            mapped[list(side.ends)] = other.roles["end"]
    return VocabularyMap(to_target, to_draft)


def _matched(side: Spelling, other: Spelling) -> Ids:
    """For every token of a side the lowest token of the other one that spells the same."""
    known = other.by_bytes
    return np.array([known.get(piece, NONE) if piece else NONE for piece in side.pieces], np.int32)


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much two vocabularies share, in tokens.

    shared: draft tokens that the target has, too. runs: target tokens that several draft tokens spell. unreachable:
    those that none spell.
    """

    draft: int
    target: int
    shared: int
    runs: int
    unreachable: int

    def words(self) -> str:
        """The same as a sentence."""
        lost = f", {self.unreachable:,} not at all" if self.unreachable else ""
        return (
            f"of its {self.draft:,} tokens {self.shared:,} are the target's, too; {self.runs:,} of the target's "
            f"{self.target:,} it spells in pieces{lost}"
        )


def overlap(draft: Spelling, target: Spelling, mapping: VocabularyMap) -> Overlap:
    """What a draft model of one vocabulary can say of the other."""
    singles = {piece[0] for piece in draft.by_bytes if len(piece) == 1}
    spelled = [piece for piece, token in target.by_bytes.items() if mapping.to_draft[token] < 0]
    lost = sum(not set(piece) <= singles and draft.cover(piece) is None for piece in spelled)
    return Overlap(len(draft), len(target), mapping.shared, len(spelled) - lost, lost)
