"""What every token of a vocabulary spells, and which tokens play a part that has no spelling."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

from paceline.runtime.text.text import Text

Role = Literal["begin", "end"]
_BEFORE = ("", "\n", ".", "a")
"""Texts before a piece, behind which a tokenizer may make another token of it."""


@dataclass(frozen=True)
class Spelling:
    """The tokens of one side.

    pieces: the bytes of every token as it stands inside a text, None for a token that shows nothing or that steers.
    roles: the tokens that begin a text and end an answer; they are told by what they do, never by how they are written.
    encode: tokens of a text, nothing added in front. leads: whether the first token of a text spells a blank in front
    that the text does not have.
    """

    pieces: tuple[bytes | None, ...]
    encode: Callable[[str], list[int]]
    roles: Mapping[Role, int] = field(default_factory=dict)
    ends: frozenset[int] = frozenset()
    leads: bool = False

    @classmethod
    def of(cls, text: Text, rows: int = 0, end: int | None = None) -> Spelling:
        """That of a bundle's tokenizer.

        rows: of the model's logits, which may be padded beyond it. end: of its ends the one that plays the part; None
        is the first.
        """
        roles = dict[Role, int]()
        pieces = text.pieces()
        pieces += [None] * (rows - len(pieces))
        ends = [token for token in text.ends if token < len(pieces)]
        if text.prefix:
            roles["begin"] = text.prefix[0]
        if ends:
            roles["end"] = end if end in ends else ends[0]
        encode = partial(text.encode, add_bos=False)
        return cls(tuple(pieces), encode, roles, frozenset(ends), text.leads)

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """The token of every byte string that one spells.

        Of several that spell the same (SentencePiece's "A" and its byte 0x41) it is the one that the tokenizer makes.
        """
        found: dict[bytes, int] = {}
        several: dict[bytes, list[int]] = {}
        for token, piece in enumerate(self.pieces):
            if piece and (first := found.setdefault(piece, token)) != token:
                several.setdefault(piece, [first]).append(token)
        return found | {piece: self._made_of(piece, tokens) for piece, tokens in several.items()}

    def _made_of(self, piece: bytes, tokens: Collection[int]) -> int:
        """Of tokens that spell the same the one that the tokenizer makes of it, the lowest where it makes none."""
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            return min(tokens)
        made = (token for before in _BEFORE for token in reversed(self.encode(before + text)))
        return next((token for token in made if token in tokens), min(tokens))

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self.by_bytes), default=0)

    def spells(self, tokens: Sequence[int]) -> bytes:
        """The bytes of a run of tokens."""
        return b"".join([self.pieces[token] or b"" for token in tokens])

    def cover(self, wanted: bytes) -> list[int] | None:
        """Tokens that spell exactly these bytes inside a text, as the tokenizer itself cuts them where it can.

        Tokenizers of SentencePiece's kind put a blank before a text, and no tokenizer takes half a character: then the
        longest tokens are taken from the left. None where nothing spells some byte.
        """
        if (whole := self.by_bytes.get(wanted)) is not None:
            return [whole]
        found = self.cut(wanted)
        return self._longest_first(wanted) if found is None else found

    def cut(self, wanted: bytes) -> list[int] | None:
        """Tokens of these bytes as the tokenizer cuts a text; None where it cannot spell them inside one."""
        try:
            text = wanted.decode()
        except UnicodeDecodeError:
            return None
        found = self.encode(text)
        if found and self.spells(found) == wanted:
            return found
        # A blank that is put in front of a text does no harm where the text has one there.
        if text[:1] == " " and (found := self.encode(text[1:])) and self.spells(found) == wanted:
            return found
        return None

    def _longest_first(self, wanted: bytes) -> list[int] | None:
        tokens, at = list[int](), 0
        while at < len(wanted):
            for end in range(min(len(wanted), at + self.longest), at, -1):
                if (token := self.by_bytes.get(wanted[at:end])) is not None:
                    tokens.append(token)
                    at = end
                    break
            else:
                return None
        return tokens
