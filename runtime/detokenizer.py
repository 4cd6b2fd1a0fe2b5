"""A tokenizer's decoder, taken apart into rules for single tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.runtime.manifest import BundleError


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
    continuing: str = ""
    """Begins a token that goes on with the word before it: it is not shown there, and no gap is."""

    def inside(self, token: str) -> str:
        """What a token is that is not the first, before the changes."""
        if self.continuing and token.startswith(self.continuing):
            return token[len(self.continuing) :]
        return self.gap + token


_CLEANED = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m"}
_CLEANED |= {" do not": " don't", " 's": "'s", " 've": "'ve", " 're": "'re"}
"""What `cleanup` of a WordPiece decoder does, token by token and in this order (tokenizers, decoders/wordpiece.rs)."""


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
    match steps:
        case [{"type": "WordPiece", "prefix": str(prefix), "cleanup": bool(cleanup)}]:
            changes = tuple(_replacing(old, new) for old, new in _CLEANED.items()) if cleanup else ()
            return DecoderRules(changes=changes, gap=" " if prefix else "", continuing=prefix)
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
        "byte-level, SentencePiece or WordPiece"
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


def byte_alphabet() -> dict[str, int]:
    """The character that byte-level tokenizers write for each byte: printable ones as they are, others above
    255.
    """
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + i): byte for i, byte in enumerate(others)}}
