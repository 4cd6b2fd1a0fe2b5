"""What a tokenizer.json may ask for before text is split into tokens: known steps, which cannot blow a text up.

The tokenizers library runs what the file says in native code, which no meter stops and no Ctrl-C reaches.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from paceline.runtime.manifest import BundleError

_NORMALIZERS = frozenset(
    "Sequence BertNormalizer Strip StripAccents NFC NFD NFKC NFKD Lowercase Nmt Precompiled Replace Prepend "
    "ByteLevel".split()
)
_PRE_TOKENIZERS = frozenset(
    "Sequence BertPreTokenizer ByteLevel CharDelimiterSplit Metaspace Whitespace WhitespaceSplit Split Punctuation "
    "Digits UnicodeScripts FixedLength".split()
)
_POST_PROCESSORS = frozenset("Sequence BertProcessing ByteLevel RobertaProcessing TemplateProcessing".split())
_LONGEST = 64
"""Characters that a step may put in place of some, or in front of a text."""
_GROWTH = 1024
"""How many times longer all steps together may make a text."""
_STEPS = 64
_PATTERN = 8192
_RAN_LONG = 5.0
"""Seconds for the texts below, which take a sound tokenizer some milliseconds."""
_TRIED = (
    'The quick brown fox\'s 12345 jumps, "over" (it)!\r\n\t x=1;',
    "\u00c4\u00e9 e\u0301 \u4e2d\u6587 \u0645\u0631 \ufdfa \u2581\u3000 \U0001f469\u200d\U0001f680 \ufffd\x00",
    *(f"{unit * 120}!" for unit in ("a", "A", " ", "1", "\n", "-", "ab", "a ", "\u00e9")),
)


def check_parts(file: dict[str, Any]) -> None:
    """Raise BundleError for a step that is unknown, that makes a text much longer, or that is damaged."""
    growth = 1.0
    for kind, known in (
        ("normalizer", _NORMALIZERS),
        ("pre_tokenizer", _PRE_TOKENIZERS),
        ("post_processor", _POST_PROCESSORS),
    ):
        steps = list(_steps(file.get(kind)))
        if len(steps) > _STEPS:
            raise BundleError(f"its {kind} has {len(steps)} steps, more than {_STEPS}: do not use this file")
        for step in steps:
            if (name := step.get("type")) not in known:
                raise BundleError(f"its {kind} {str(name)[:40]!r} is not supported here")
            growth *= _grows(step, f"its {kind} {name}")
    if growth > _GROWTH:
        raise BundleError(f"its steps make a text up to {growth:.3g} times longer: do not use this file")


def try_out(tokenizer: Tokenizer) -> None:
    """Encode fixed texts of many kinds. Raises BundleError where that takes far too long."""
    begun = time.monotonic()
    for text in _TRIED:
        tokenizer.encode(text, add_special_tokens=False)
        if (took := time.monotonic() - begun) > _RAN_LONG:
            raise BundleError(f"it takes {took:.0f} s for a line of text: do not use this file")


def let_through(error: BaseException) -> None:
    """Raise again what is no failure of a tokenizer; a panic of the native library is one, though no Exception."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _steps(part: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The single steps of a part, in order."""
    if part is None:
        return
    if not isinstance(part, dict) or depth > 8:
        raise BundleError("its steps cannot be read")
    inner = part.get("normalizers", part.get("pretokenizers", part.get("processors")))
    if part.get("type") != "Sequence":
        yield part
    elif not isinstance(inner, list):
        raise BundleError("its steps cannot be read")
    else:
        for step in inner:
            yield from _steps(step, depth + 1)


def _grows(step: dict[str, Any], what: str) -> float:
    """How many times longer a step makes a text at most, constant additions aside."""
    if step.get("type") == "TemplateProcessing":
        return _repeats(step, what)
    pattern = step.get("pattern")
    text = next(iter(pattern.values()), "") if isinstance(pattern, dict) else ""
    if len(str(text)) > _PATTERN:
        raise BundleError(f"{what} has a pattern of {len(str(text))} characters: do not use this file")
    added = max(
        (len(str(step[key])) for key in ("content", "prepend", "replacement") if key in step), default=0
    )
    if added > _LONGEST:
        raise BundleError(f"{what} puts in {added} characters, more than {_LONGEST}: do not use this file")
    if step.get("type") == "Precompiled":
        return _longest_of(step.get("precompiled_charsmap"), what)
    if step.get("type") != "Replace":
        return 1.0
    literal = isinstance(pattern, dict) and "String" in pattern and text
    return max(1.0, added / len(text) if literal else added + 1.0)


def _repeats(step: dict[str, Any], what: str) -> float:
    """How often a template repeats the text. Raises BundleError for one that adds more tokens than any model needs."""
    pieces, tokens = step.get("single"), step.get("special_tokens")
    if not isinstance(pieces, list) or not isinstance(tokens, dict):
        raise BundleError(f"{what} cannot be read")
    added = repeated = 0
    for piece in pieces:
        special = piece.get("SpecialToken") if isinstance(piece, dict) else None
        if not isinstance(special, dict):
            repeated += 1
            continue
        token = tokens.get(str(special.get("id")))
        ids = token.get("ids") if isinstance(token, dict) else None
        added += max(len(ids), 1) if isinstance(ids, list) else 1
    if added > _LONGEST:
        raise BundleError(f"{what} adds {added} tokens to a text, more than {_LONGEST}: do not use this file")
    return float(max(repeated, 1))


def _longest_of(charsmap: Any, what: str) -> float:
    """Bytes of the longest text in a SentencePiece map. Raises BundleError for one whose trie is not inside it."""
    try:
        raw = base64.b64decode(charsmap or "", validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise BundleError(f"{what} is damaged: fetch the file again") from None
    size = int.from_bytes(raw[:4], "little")
    if raw and (len(raw) < 4 or size % 4 or not 0 < size <= len(raw) - 4):
        raise BundleError(f"{what} is damaged (its table is not inside it): fetch the file again")
    longest = max(map(len, raw[4 + size :].split(b"\0")), default=0)
    if longest > 4 * _LONGEST:
        raise BundleError(f"{what} puts in {longest} bytes, more than {4 * _LONGEST}: do not use this file")
    return float(max(1, longest))
