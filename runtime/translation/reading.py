"""The target's text as the draft model reads it: token by token, so that what was read stays read."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence

from paceline.runtime.contracts import common_prefix
from paceline.runtime.request import Conversation
from paceline.runtime.translation.ngrams import NgramCache
from paceline.runtime.translation.sides import Sides

_WHOLE = 16
"""From so many new tokens on they are cut anew as a text: a prompt, what a user said."""
_UTF8_LONGEST = 4
LOOK_BEHIND = 32
"""Tokens of the target that are cut anew when the draft model seems to have lost the thread."""


class Reading:
    """A text in both vocabularies. `tokens` is the draft model's, and belongs to the reading.

    Its marks are the places where both texts end alike: so many tokens of the target are so many of the draft model.
    """

    def __init__(self, sides: Sides, ngrams: NgramCache | None) -> None:
        self._draft, self._target, self.ngrams = sides.draft, sides.target, ngrams
        self._direct, self._frame = sides.to_draft, sides.frame
        self._runs: dict[int, tuple[int, ...]] = {}
        self._read: list[int] = []
        self._marks = (array("i", [0]), array("i", [0]))
        self._framed = 0
        self.tokens: list[int] = []

    def open(self, tokens: Sequence[int], asked: Conversation | None, prompt: int) -> None:
        """Read the first tokens of a text, the prompt of a chat, in the frame of the draft model's own template.

        Where it is no chat, or there is no such frame, they are read as any text.
        """
        framed = None if self._frame is None or asked is None else self._frame.tokens(asked)
        if framed is not None and len(tokens) >= prompt:
            self._back_to(0)
            self._append(tokens[:prompt], framed)
            self._framed = prompt

    def length_at(self, target: int) -> int:
        """Draft tokens of so many of the target's, as far as the last mark that is not beyond."""
        targets, drafts = self._marks
        return drafts[bisect_right(targets, target) - 1]

    def follow(self, tokens: Sequence[int]) -> list[int]:
        """The draft model's tokens of the target's text."""
        self._back_to(common_prefix(self._read, tokens))
        new = tokens[len(self._read) :]
        if len(new) >= _WHOLE or not self._begun:
            self._read_whole(new)
        else:
            for token in new:
                self._append([token], self.run_of(token) or self._finished(token))
        return self.tokens

    def settle(self) -> None:
        """Cut the last tokens anew, as one text."""
        read = list(self._read)
        self._back_to(max(len(read) - LOOK_BEHIND, self._framed, 1 if read else 0))
        self._read_whole(read[len(self._read) :])

    def run_of(self, token: int) -> tuple[int, ...]:
        """Draft tokens that spell a target token; none where it shows nothing and has no counterpart."""
        direct = self._direct[token] if token < len(self._direct) else -1
        if direct >= 0:
            return (direct,)
        if self.ngrams is not None and (known := self.ngrams.run_of(token)) is not None:
            return known
        run = self._runs.get(token)
        if run is None:
            piece = self._piece(token)
            run = self._runs[token] = tuple((self._draft.cover(piece) or ()) if piece else ())
        return run

    def _finished(self, token: int) -> Sequence[int]:
        """Draft tokens of a character that this token may end, where the pieces of it that stand before had none."""
        if not _is_cut(self._piece(token)):
            return ()
        before, (targets, drafts) = list[int](), self._marks
        for at in range(len(targets) - 1, max(len(targets) - _UTF8_LONGEST, 0), -1):
            here = self._read[targets[at - 1]] if targets[at] == targets[at - 1] + 1 else -1
            if drafts[at] > drafts[at - 1] or not _is_cut(self._piece(here)):
                break
            before.append(here)
        for size in range(len(before), 0, -1):
            spelled = self._target.spells([*reversed(before[:size]), token])
            if (found := self._draft.cover(spelled)) is not None:
                return found
        return ()

    def _append(self, target: Sequence[int], draft: Sequence[int]) -> None:
        self._read.extend(target)
        self.tokens.extend(draft)
        targets, drafts = self._marks
        targets.append(len(self._read))
        drafts.append(len(self.tokens))

    def _back_to(self, length: int) -> None:
        """Forget the text behind the last mark that is not beyond this length."""
        targets, drafts = self._marks
        kept = bisect_right(targets, length)
        del targets[kept:], drafts[kept:]
        del self._read[targets[-1] :], self.tokens[drafts[-1] :]
        self._framed = min(self._framed, len(self._read))

    @property
    def _begun(self) -> bool:
        """Whether the text shows anything yet."""
        return self._framed > 0 or any(map(self._piece, self._read))

    def _piece(self, token: int) -> bytes | None:
        return self._target.pieces[token] if 0 <= token < len(self._target) else None

    def _read_whole(self, new: Sequence[int]) -> None:
        """Cut a piece of text at tokens that show nothing, and encode what lies between as the draft model does."""
        if not self._read and new:
            new = self._begin(new)
        start = 0
        for at, token in enumerate([*new, -1]):
            if self._piece(token) is not None:
                continue
            if at > start:
                part = new[start:at]
                self._append(part, self._cut(part))
            if token >= 0:
                self._append([token], self.run_of(token))
            start = at + 1

    def _begin(self, new: Sequence[int]) -> Sequence[int]:
        """Give the draft model what begins a text to it, in place of what does to the target; the rest of a new text.

        In other places the same token may be an end.
        """
        begin = self._draft.roles.get("begin")
        opening = () if begin is None else (begin,)
        if new[0] == self._target.roles.get("begin") or self.run_of(new[0]) == (begin,):
            self._append(new[:1], opening)
            return new[1:]
        self.tokens.extend(opening)
        return new

    def _cut(self, part: Sequence[int]) -> Sequence[int]:
        """Draft tokens of a stretch of text: as their tokenizer cuts it, from the first word that begins there."""
        spelled, first = self._target.spells(part), not self._begun
        # One blank more in front is how SentencePiece begins a text, and only a text.
        if first and self._target.leads:
            spelled = spelled.removeprefix(b" ")
        if first and self._draft.leads and (found := self._draft.cut(b" " + spelled)) is not None:
            return found
        if (found := self._draft.cut(spelled)) is not None:
            return found
        word = next((at for at, one in enumerate(part) if at and (self._piece(one) or b"")[:1] == b" "), 0)
        rest = self._draft.cut(self._target.spells(part[word:])) if word else None
        runs = [self.run_of(one) for one in (part if rest is None else part[:word])]
        if first and self._target.leads and not self._draft.leads:
            runs[0] = tuple(self._draft.cover((self._piece(part[0]) or b"").removeprefix(b" ")) or ())
        return [token for run in runs for token in run] + (rest or [])


def _is_cut(piece: bytes | None) -> bool:
    """Whether a token begins or ends inside a character."""
    try:
        (piece or b"").decode()
    except UnicodeDecodeError:
        return True
    return False
