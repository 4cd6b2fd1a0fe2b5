"""Keeps control tokens out of ordinary text: inside the tokenizer they go by secret names that no text
contains.

A control token is found in text by its spelling, so anybody who can type `<|im_end|>` could end a message.
Here the tokenizer is loaded with every control token renamed. Its spelling is then ordinary text and can
never give its id; where the template itself wrote it, and only there, the spelling is exchanged for the
name before tokenizing. All in one pass over the whole text, so ordinary text becomes the same tokens as
with the original tokenizer.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct

from paceline.runtime.manifest import BundleError
from paceline.runtime.template.marked import FOREIGN, OWN, Marked

_USUAL = re.compile(r"<[|\uff5c].*[|\uff5c]>|</?s>|<(bos|eos|pad|unk|mask)>|\[/?[A-Z_]+\]", re.DOTALL)
_THOUGHTS = re.compile("think|thought|reason|tool_?call", re.IGNORECASE)
_HIGHEST_ID = 2**31 - 1


class AddedToken(Struct, frozen=True):
    """A token that the tokenizer finds by its spelling before it splits text."""

    id: int
    content: str
    special: bool = False
    single_word: bool = False
    normalized: bool = False


class _File(Struct):
    model: dict[str, Raw]
    added_tokens: list[dict[str, Any]] = []
    decoder: dict[str, Any] | None = None
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None


class Place(NamedTuple):
    """Where a secret name stands in a text: its number, and its characters from start to end."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Controls:
    """Control tokens by spelling, with their secret names.

    words: those that count only as whole words. said: those that count in a model's earlier answers too, because it
    writes them itself and they end and begin no message: the template's frames of thoughts and calls.
    """

    names: Mapping[str, str]
    words: frozenset[str]
    said: frozenset[str]
    secret: str
    pattern: re.Pattern[str]
    unsure: bool
    """Whether some are looked for in normalised text, where they may fail to match."""

    def hide(self, marked: Marked, left: Collection[int] = ()) -> tuple[str, list[Place]]:
        """The text with the control tokens of the template under their secret names, and where they stand.

        left: numbers of places that keep their spelling.
        """
        pieces: list[str] = []
        places: list[Place] = []
        at = size = number = 0
        for text, mark in marked.runs():
            end = at + len(text)
            for found in self._found(marked.text, at, end, mark):
                name = found[0] if number in left else self.names[found[0]]
                pieces += [marked.text[at : found.start()], name]
                size += found.start() - at
                if number not in left:
                    places.append(Place(number, size, size + len(name)))
                size, at, number = size + len(name), found.end(), number + 1
            rest = marked.text[at:end]
            pieces.append(rest if mark == OWN else rest.replace(self.secret, ""))
            size, at = size + len(pieces[-1]), end
        return "".join(pieces), places

    def written_in(self, marked: Marked) -> Iterator[tuple[int, int]]:
        """Start and end of each control token of the template, and of each that the model may write."""
        at = 0
        for text, mark in marked.runs():
            yield from (found.span() for found in self._found(marked.text, at, at + len(text), mark))
            at += len(text)

    def _found(self, text: str, start: int, end: int, mark: int) -> Iterator[re.Match[str]]:
        if mark == FOREIGN:
            return
        for found in self.pattern.finditer(text, start, end):
            if mark != OWN and found[0] not in self.said:
                continue
            if found[0] not in self.words or not _inside_word(text, found.start(), found.end()):
                yield found


def _inside_word(text: str, start: int, end: int) -> bool:
    return any(re.match(r"\w", side) for side in (text[start - 1 : start], text[end : end + 1]))


@dataclass(frozen=True, slots=True)
class Disguised:
    """A tokenizer.json with renamed control tokens, and what was learnt while reading it."""

    json: bytes
    controls: Controls
    added: tuple[AddedToken, ...]
    decoder: dict[str, Any] | None
    size: int
    """The highest id plus one."""
    steps: dict[str, Any]
    """Its normalizer, pre_tokenizer and post_processor."""


def disguise(raw: bytes, template: str, ends: Collection[int]) -> Disguised:
    """Rename the control tokens of a tokenizer.json.

    template: the chat template's source; an added token that stands in it is a control token, and so is
    each of `ends` (ids that end an answer). Raises msgspec errors, ValueError or BundleError for a damaged
    file.
    """
    file = msgspec.json.decode(raw, type=_File)
    whole = msgspec.json.decode(raw, type=dict[str, Raw])
    added = tuple(msgspec.convert(token, AddedToken) for token in file.added_tokens)
    controls = _name(
        tuple(t for t in added if t.special or t.id in ends or _looks_like_control(t.content, template)), ends
    )
    for token in file.added_tokens:
        if token["content"] in controls.names:
            token |= {"content": controls.names[token["content"]], "single_word": False}
    model, size = _rename_in_model(file.model, controls, {token.id for token in added})
    whole |= {
        "added_tokens": Raw(msgspec.json.encode(file.added_tokens)),
        "model": Raw(msgspec.json.encode(model)),
        # Cutting or filling up a prompt is nobody's wish here.
        "truncation": Raw(b"null"),
        "padding": Raw(b"null"),
    }
    size = max([size, *(token.id + 1 for token in added)])
    steps = {
        "normalizer": file.normalizer,
        "pre_tokenizer": file.pre_tokenizer,
        "post_processor": file.post_processor,
    }
    return Disguised(msgspec.json.encode(whole), controls, added, file.decoder, size, steps)


def _looks_like_control(text: str, template: str) -> bool:
    if _USUAL.fullmatch(text):
        return True
    framed = len(text) > 2 and not (text[0].isalnum() or text[-1].isalnum() or text.isspace())
    return framed and text in template


def _framed(token: AddedToken) -> bool:
    """Whether a token may stand in an answer: not a special one, nor one spelled as turns are but for thoughts."""
    return not token.special and (
        not _USUAL.fullmatch(token.content) or bool(_THOUGHTS.search(token.content))
    )


def _name(tokens: tuple[AddedToken, ...], ends: Collection[int]) -> Controls:
    secret = "\ue0f0" + secrets.token_hex(8)
    names = {
        token.content: f"{secret}.{number}\ue0f1" for number, token in enumerate(tokens) if token.content
    }
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    words = frozenset(token.content for token in tokens if token.single_word)
    said = frozenset(token.content for token in tokens if token.id not in ends and _framed(token))
    return Controls(names, words, said, secret, pattern, any(token.normalized for token in tokens))


def _rename_in_model(
    model: dict[str, Raw], controls: Controls, added_ids: set[int]
) -> tuple[dict[str, Raw], int]:
    """The model under the secret names, and its highest id plus one."""
    names = controls.names
    vocabulary = msgspec.json.decode(model.get("vocab", Raw(b"{}")))
    if isinstance(vocabulary, list):  # unigram: the place in the list is the id
        if any(not isinstance(entry, list) or not entry for entry in vocabulary):
            raise ValueError("an entry of the vocabulary is not a pair")
        size = len(vocabulary)
        held = {entry[0] for entry in vocabulary if entry[0] in names}
        vocabulary = [[names.get(entry[0], entry[0]), *entry[1:]] for entry in vocabulary]
    else:
        size = _checked_size(vocabulary, len(added_ids))
        held = {text for text in vocabulary if text in names}
        taken = {vocabulary[text] for text in held}
        if len(taken) < len(held) or sum(i in taken for i in vocabulary.values()) > len(taken):
            raise ValueError("a control token shares its id with another token")
        vocabulary = {names.get(text, text): i for text, i in vocabulary.items()}
    changed = {"vocab": Raw(msgspec.json.encode(vocabulary))} if held else {}
    if held and "merges" in model:
        merges = msgspec.json.decode(model["merges"])
        changed["merges"] = Raw(msgspec.json.encode([pair for pair in merges if not _makes(pair, held)]))
    if (unknown := msgspec.json.decode(model.get("unk_token", Raw(b"null")))) in held:
        changed["unk_token"] = Raw(msgspec.json.encode(names[unknown]))
    # Dropout would make the tokens of a text depend on chance.
    return {**model, **changed, **({"dropout": Raw(b"null")} if "dropout" in model else {})}, size


def _checked_size(vocabulary: object, added: int) -> int:
    if not isinstance(vocabulary, dict) or not all(isinstance(i, int) for i in vocabulary.values()):
        raise ValueError("the vocabulary is not a table of ids")
    highest = max(vocabulary.values(), default=-1)
    if min(vocabulary.values(), default=0) < 0 or highest > min(
        _HIGHEST_ID, 2 * (len(vocabulary) + added) + 1024
    ):
        raise BundleError(
            f"the tokenizer gives the id {highest} to one of {len(vocabulary)} tokens: export again"
        )
    return highest + 1


def _makes(pair: object, held: set[str]) -> bool:
    """Whether a merge makes, or is made of, a control token."""
    parts = pair.split(" ") if isinstance(pair, str) else pair
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise ValueError("a merge is not a pair")
    return parts[0] in held or parts[1] in held or parts[0] + parts[1] in held
