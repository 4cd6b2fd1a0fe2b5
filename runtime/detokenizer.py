"""Tokens to text, one token at a time: bytes of each token, and a UTF-8 decoder that waits for whole
characters.

A decoder is taken apart once into rules for single tokens, so a token costs the same wherever it stands.
Text equals the tokenizer's own one-shot decoding, with one deliberate difference: where byte tokens form no
valid text, only the broken bytes become U+FFFD, as in SentencePiece, and not the whole run of byte tokens
around them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.runtime.channels import Channels, Markers
from paceline.runtime.manifest import BundleError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_UTF8_LONGEST = 4


@dataclass(frozen=True, slots=True)
class DecoderRules:
    """What a tokenizer's decoder does to one token."""

    byte_level: bool = False
    """Characters stand for bytes."""
    byte_tokens: bool = False
    """`<0x0A>` stands for a byte."""
    changes: tuple[Callable[[str], str], ...] = ()
    """Applied to every token in turn."""
    dropped_at_start: str = ""
    """Removed from the first token of a text."""
    stripped: tuple[str, int] = ("", 0)
    """A character, and how many of them the beginning of a text loses."""
    gap: str = ""
    """Stands before every token but the first."""


def read_decoder(decoder: dict[str, Any] | None) -> DecoderRules:
    """The rules in the `decoder` of a tokenizer.json. Raises BundleError for one that is not supported."""
    if decoder is None:
        return DecoderRules(gap=" ")
    steps = _flat(decoder)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return DecoderRules(byte_level=True)
    if kinds in (["Metaspace"], ["ByteFallback", "Metaspace"]):
        metaspace = steps[-1]
        mark = str(metaspace.get("replacement", "▁"))
        scheme = metaspace.get(
            "prepend_scheme", "always" if metaspace.get("add_prefix_space", True) else "never"
        )
        return DecoderRules(
            byte_tokens=len(steps) > 1,
            changes=(lambda text: text.replace(mark, " "),),
            dropped_at_start="" if scheme == "never" else mark,
        )
    return _read_steps(steps)


def _read_steps(steps: Sequence[dict[str, Any]]) -> DecoderRules:
    changes: list[Callable[[str], str]] = []
    byte_tokens = fused = False
    stripped = ("", 0)
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if (
                not byte_tokens | fused
            ):
                changes.append(_replacing(old, new))
            case {"type": "ByteFallback"} if not byte_tokens | fused:
                byte_tokens = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "content": str(mark), "start": int(start), "stop": 0} if (
                fused and not stripped[1]
            ):
                stripped = (mark, start)
            case {"type": "Strip", "content": str(mark), "start": int(start), "stop": int(stop)} if not (
                byte_tokens | fused
            ):
                changes.append(_stripping(mark, start, stop))
            case _:
                raise _unsupported(step)
    return DecoderRules(byte_tokens=byte_tokens, changes=tuple(changes), stripped=stripped)


def _flat(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict) or not isinstance(decoder.get("type"), str):
        raise _unsupported(decoder)
    if decoder["type"] != "Sequence":
        return [decoder]
    parts = decoder.get("decoders")
    if not isinstance(parts, list):
        raise _unsupported(decoder)
    return [step for part in parts for step in _flat(part)]


def _unsupported(step: object) -> BundleError:
    name = step.get("type") if isinstance(step, dict) else step
    return BundleError(
        f"the tokenizer's decoder {str(name)[:40]!r} is not supported here: use a model whose tokens are "
        "byte-level or SentencePiece"
    )


def _replacing(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


def _stripping(mark: str, start: int, stop: int) -> Callable[[str], str]:
    def strip(text: str) -> str:
        left = next(
            (i for i, character in enumerate(text[:start]) if character != mark), min(start, len(text))
        )
        ends = text[::-1][: min(stop, len(text) - left)]
        right = next((i for i, character in enumerate(ends) if character != mark), len(ends))
        return text[left : len(text) - right]

    return strip


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level tokenizers write for each byte: printable ones as they are, others above
    255.
    """
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


class TokenBytes:
    """The bytes each token stands for. spell: the token's text, None beyond the vocabulary. hidden: never
    shown.
    """

    def __init__(
        self,
        rules: DecoderRules,
        spell: Callable[[int], str | None],
        hidden: Iterable[int],
        markers: Markers | None = None,
    ) -> None:
        self.rules = rules
        self._spell = spell
        self._hidden = frozenset(hidden)
        self._alphabet = _byte_alphabet()
        self._known: dict[int, bytes | None] = {}
        self.markers = markers

    def of(self, token: int) -> bytes | None:
        """Its bytes inside a text, None where it shows nothing: special, or beyond the vocabulary."""
        try:
            return self._known[token]
        except KeyError:
            spelled = None if token in self._hidden or not 0 <= token < 2**32 else self._spell(token)
            found = None if spelled is None else self._bytes(self.rules.gap + spelled)
            return self._known.setdefault(token, found)

    def channels(self, prompt: Sequence[int]) -> Channels | None:
        """What tells thoughts from the answer to a prompt, None for models that have no channels."""
        return None if self.markers is None else Channels(self.markers, self._spell, prompt)

    def at_start(self, token: int) -> bytes | None:
        """Its bytes as the first token that shows anything."""
        spelled = None if self.of(token) is None else self._spell(token)
        mark = self.rules.dropped_at_start
        return None if spelled is None else self._bytes(spelled.replace(mark, "") if mark else spelled)

    def _bytes(self, spelled: str) -> bytes:
        rules = self.rules
        if rules.byte_level:
            try:
                return bytes(map(self._alphabet.__getitem__, spelled))
            except KeyError:
                return spelled.encode()
        for change in rules.changes:
            spelled = change(spelled)
        byte = _BYTE.fullmatch(spelled) if rules.byte_tokens else None
        return bytes([int(byte[1], 16)]) if byte else spelled.encode()


class Detokenizer:
    """Text of a growing answer. Pushed pieces and the flush together are the text of prompt and answer less
    the prompt's.

    A character is given once all of its bytes are there. If the prompt ends inside a character, its first
    bytes count: the answer then begins with the whole character. Work per token does not depend on the
    length.
    """

    def __init__(self, tokens: TokenBytes, prompt: Sequence[int] = ()) -> None:
        self._tokens = tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._started = False
        mark, self._strip = tokens.rules.stripped
        self._mark = mark.encode()
        for token in prompt:
            self._next(token)
            if self._started and not self._strip:
                break
        self._utf8.decode(self._tail(prompt))
        self._channels = tokens.channels(prompt)

    def push(self, token: int) -> str:
        """The text that this token completes, often none."""
        if self._channels is not None and not self._channels.says(token):
            return ""
        if self._started and not self._strip:
            return self._utf8.decode(self._tokens.of(token) or b"")
        return self._utf8.decode(self._next(token))

    def flush(self) -> str:
        """U+FFFD where the answer ends inside a character, else nothing."""
        return self._utf8.decode(b"", final=True)

    def _next(self, token: int) -> bytes:
        data = self._tokens.of(token) if self._started else self._tokens.at_start(token)
        if data is None:
            return b""
        self._started = True
        if not self._strip:
            return data
        while self._strip and data.startswith(self._mark):
            data, self._strip = data[len(self._mark) :], self._strip - 1
        if data:
            self._strip = 0
        return data

    def _tail(self, prompt: Sequence[int]) -> bytes:
        """The last bytes of the prompt, enough to hold a character that it leaves unfinished."""
        tail = b""
        for token in reversed(prompt):
            tail = (self._tokens.of(token) or b"") + tail
            if len(tail) >= _UTF8_LONGEST:
                break
        return tail
