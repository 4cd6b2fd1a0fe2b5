"""The target's text as the draft model reads it: token by token, so that what was read stays read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from paceline.runtime.contracts import common_prefix
from paceline.runtime.translation.mapping import VocabularyMap
from paceline.runtime.translation.ngrams import NgramCache
from paceline.runtime.translation.spelling import Spelling

_WHOLE = 16
"""From so many new tokens on they are cut anew as a text: a prompt, what a user said."""
LOOK_BEHIND = 32
"""Tokens of the target that are cut anew when the draft model seems to have lost the thread."""


class Mark(NamedTuple):
    """So many tokens of the target's text are so many of the draft model's."""

    target: int
    draft: int


class Reading:
    """A text in both vocabularies. `tokens` is the draft model's, and belongs to the reading."""

    def __init__(
        self, draft: Spelling, target: Spelling, mapping: VocabularyMap, ngrams: NgramCache | None
    ) -> None:
        self._draft, self._target, self._map, self._ngrams = draft, target, mapping, ngrams
        self._runs: dict[int, tuple[int, ...]] = {}
        self._read: list[int] = []
        self._marks = [Mark(0, 0)]
        self.tokens: list[int] = []

    def length_at(self, target: int) -> int:
        """Draft tokens of so many of the target's, as far as the last mark that is not beyond."""
        return next(mark.draft for mark in reversed(self._marks) if mark.target <= target)

    def follow(self, tokens: Sequence[int]) -> list[int]:
        """The draft model's tokens of the target's text."""
        self._back_to(common_prefix(self._read, tokens))
        new = tokens[len(self._read) :]
        if len(new) >= _WHOLE or not self._read:
            self._read_whole(new)
        else:
            for token in new:
                self._append([token], self.run_of(token))
        return self.tokens

    def settle(self) -> bool:
        """Cut the last tokens anew, as one text; whether that changed how the draft model reads them."""
        before, read = list(self.tokens), list(self._read)
        self._back_to(max(len(read) - LOOK_BEHIND, 1 if read else 0))
        self._read_whole(read[len(self._read) :])
        return self.tokens != before

    def run_of(self, token: int) -> tuple[int, ...]:
        """Draft tokens that spell a target token; none where it shows nothing and has no counterpart."""
        direct = int(self._map.to_draft[token]) if token < len(self._map.to_draft) else -1
        if direct >= 0:
            return (direct,)
        if self._ngrams is not None and (known := self._ngrams.run_of(token)) is not None:
            return known
        run = self._runs.get(token)
        if run is None:
            piece = self._target.pieces[token] if token < len(self._target) else None
            run = self._runs[token] = tuple((self._draft.cover(piece) or ()) if piece else ())
        return run

    def _append(self, target: Sequence[int], draft: Sequence[int]) -> None:
        self._read.extend(target)
        self.tokens.extend(draft)
        self._marks.append(Mark(len(self._read), len(self.tokens)))

    def _back_to(self, length: int) -> None:
        """Forget the text behind the last mark that is not beyond this length."""
        while self._marks[-1].target > length:
            self._marks.pop()
        del self._read[self._marks[-1].target :]
        del self.tokens[self._marks[-1].draft :]

    def _read_whole(self, new: Sequence[int]) -> None:
        """Cut a piece of text at tokens that show nothing, and encode what lies between as the draft model does."""
        if not self._read and new:
            self._begin(new[0])
        start = 0
        for at, token in enumerate([*new, -1]):
            piece = self._target.pieces[token] if 0 <= token < len(self._target) else None
            if piece is not None:
                continue
            if at > start:
                part = new[start:at]
                self._append(part, self._cut(part))
            if token >= 0:
                self._append([token], self.run_of(token))
            start = at + 1

    def _begin(self, first: int) -> None:
        """A draft model that knows a token for the beginning of a text is given it."""
        begin = self._draft.roles.get("begin")
        if begin is not None and self.run_of(first) != (begin,):
            self.tokens.append(begin)

    def _cut(self, part: Sequence[int]) -> Sequence[int]:
        """Draft tokens of a stretch of text."""
        spelled = self._target.spells(part)
        try:
            found = self._draft.encode(spelled.decode())
        except UnicodeDecodeError:
            found = []
        # A blank more in front of a stretch is how SentencePiece begins one.
        if found and self._draft.spells(found) in (spelled, b" " + spelled):
            return found
        return [token for one in part for token in self.run_of(one)]
