"""What every token of a vocabulary spells, and which tokens play a part that has no spelling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from paceline.runtime.text.text import Text

Role = Literal["begin", "end"]


@dataclass(frozen=True)
class Spelling:
    """The tokens of one side.

    pieces: the bytes of every token as it stands inside a text, None for a token that shows nothing or that steers.
    roles: the tokens that begin a text and end an answer; they are told by what they do, never by how they are written.
    encode: tokens of a text, nothing added in front.
    """

    pieces: tuple[bytes | None, ...]
    encode: Callable[[str], list[int]]
    roles: Mapping[Role, int] = field(default_factory=dict)
    ends: frozenset[int] = frozenset()

    @classmethod
    def of(cls, text: Text, rows: int = 0) -> Spelling:
        """That of a bundle's tokenizer. rows: of the model's logits, which may be padded beyond it."""
        roles = dict[Role, int]()
        if text.prefix:
            roles["begin"] = text.prefix[0]
        if text.ends:
            roles["end"] = text.ends[0]
        pieces = text.pieces()
        pieces += [None] * (rows - len(pieces))
        return cls(
            tuple(pieces), lambda words: text.encode(words, add_bos=False), roles, frozenset(text.ends)
        )

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """The lowest token of every byte string that one token spells."""
        found: dict[bytes, int] = {}
        for token, piece in enumerate(self.pieces):
            if piece:
                found.setdefault(piece, token)
        return found

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
