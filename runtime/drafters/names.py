"""The names of drafters that users write: what they mean for a bundle, and what `auto` chooses among."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from paceline.memory.errors import ArgumentError
from paceline.runtime.drafters.kinds import KINDS, Extent, Kind
from paceline.runtime.drafters.words import (
    AUTO,
    PLAIN,
    TRANSLATIONS,
    WANTED,
    WITH_HEAD,
    WITH_MODEL,
    WITH_TARGET,
    Translation,
    closest,
)
from paceline.runtime.manifest import Part
from paceline.runtime.part import AT_ONCE


@dataclass(frozen=True, slots=True)
class Word:
    """One drafter as the user wrote it. part: its draft model or head. depth: levels that it goes down at most.

    translation: how what it drafts is read, where its part has another vocabulary.
    """

    text: str
    kind: Kind
    part: str | None
    depth: int
    translation: Translation = "ngram"


@dataclass(frozen=True, slots=True)
class Name:
    """What `--drafter` names: one drafter, several in one tree, or `auto`, which has no words of its own."""

    text: str
    words: tuple[Word, ...]

    @property
    def auto(self) -> bool:
        """Whether the controller chooses the drafter."""
        return self.text == AUTO

    @property
    def plain(self) -> bool:
        """Whether nothing is drafted."""
        return self.text == PLAIN

    @property
    def models(self) -> tuple[str, ...]:
        """The draft models that it runs."""
        return tuple(dict.fromkeys(word.part for word in self.words if word.part is not None))

    @property
    def depth(self) -> int:
        """Levels that the deepest goes down at most where the user does not say."""
        return max((word.depth for word in self.words), default=max(kind.depth for kind in KINDS))


def runnable(kind: Kind, parts: Mapping[str, Part]) -> list[str]:
    """The draft models of a bundle that a kind can run."""
    return [name for name, part in parts.items() if part.kind == kind.runs]


def single_words(parts: Mapping[str, Part]) -> list[str]:
    """Every single drafter that a bundle with these draft models can run, `none` first."""
    return [kind.word for kind in KINDS if kind.runs is None or runnable(kind, parts)]


def parse(text: str, parts: Mapping[str, Part]) -> Name:
    """Understand the words of `--drafter`. parts: the draft models of the bundle.

    Raises ValueError that lists what there is.
    """
    if not isinstance(text, str):
        raise ArgumentError(f"a drafter is named by a word, not {text!r:.40}")
    if text.strip() == AUTO:
        return Name(AUTO, ())
    words = [word.strip() for word in text.split(",")]
    if "" in words and len(words) > 1:
        where = "before" if not words[0] else "after"
        raise ArgumentError(f"drafter {text!r}: a name is missing {where} the comma")
    wrong = ArgumentError(f"drafter {text!r}: fused drafters must differ, and none and auto stand alone")
    if len(words) > 1 and {PLAIN, AUTO} & set(words):
        raise wrong
    found = tuple(_understand(word, parts) for word in words)
    if len({(word.kind.word, word.part, word.translation) for word in found}) < len(found):
        raise wrong
    return Name(",".join(word.text for word in found), found)


def _understand(text: str, parts: Mapping[str, Part]) -> Word:
    plain, at, wish = text.partition("@")
    if at and (not plain or plain in (AUTO, PLAIN)):
        raise ArgumentError(f"drafter {text!r}: before @ stands one draft model of another vocabulary")
    if at:
        return _translated(_understand(plain, parts), text, wish, parts)
    word, colon, part = text.partition(":")
    if colon and not part:
        raise ArgumentError(
            f"drafter {text!r}: a name is missing after the colon; without one it is {word!r}"
        )
    if word in parts and not part:
        # A draft model's own name means the first kind that runs such a part.
        word, part = next((kind.word for kind in KINDS if kind.runs == parts[word].kind), word), word
    kind = next((kind for kind in KINDS if kind.word == word), None)
    if kind is None and text in parts:
        raise ArgumentError(
            f"drafter {text!r} is of kind {parts[text].kind}, which this paceline cannot run: {_known(parts)}"
        )
    if kind is None or (part and kind.runs is None):
        close = closest(text, _names(parts))
        meant = f"did you mean {close}? " if close else ""
        raise ArgumentError(f"unknown drafter {text!r}: {meant}{_known(parts)}")
    if kind.runs is None:
        return Word(text, kind, None, kind.depth)
    needed, flag, given = WANTED[kind.runs]
    if not (fitting := runnable(kind, parts)):
        others = [name for name in single_words(parts) if name != PLAIN]
        raise ArgumentError(
            f"drafter {word} needs a {needed} and this bundle has none that it can run: "
            f"use one of {', '.join(others)}, or export again with `paceline export {flag} NAME={given}`"
        )
    part = part or fitting[0]
    if part not in fitting:
        raise ArgumentError(f"the bundle has no {needed} {part!r} for {word}: it has {', '.join(fitting)}")
    deepest = parts[part].deepest if kind.runs in AT_ONCE else kind.depth
    return Word(text, kind, part, deepest)


def _translated(word: Word, text: str, wish: str, parts: Mapping[str, Part]) -> Word:
    """A drafter whose tokens are to be read in a way that the user named."""
    if word.part is None or parts[word.part].tokenizer is None:
        raise ArgumentError(
            f"drafter {text!r}: what stands after @ says how another vocabulary is read, and {word.text} has none: "
            f"use {word.text}"
        )
    known = next((one for one in TRANSLATIONS if one == wish), None)
    if known is None:
        raise ArgumentError(f"drafter {text!r}: after @ stands one of {', '.join(TRANSLATIONS)}")
    return replace(word, text=text, translation=known)


def _names(parts: Mapping[str, Part]) -> list[str]:
    """All that names one drafter of a bundle, and `auto`."""
    run = [name for name, part in parts.items() if any(kind.runs == part.kind for kind in KINDS)]
    return [*single_words(parts), *run, AUTO]


def _known(parts: Mapping[str, Part]) -> str:
    return f"this bundle has {', '.join(_names(parts))} (several joined by commas are fused)"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a name needs. models: the draft models. taps: of the target, kept for every row. tables: bytes of all else.

    free: whether a drafter without a model is among them, which may hold nothing.
    optional: whether less than all of it is an answer, too: `auto` does what fits.
    """

    models: tuple[str, ...]
    taps: tuple[str, ...]
    tables: int
    free: bool
    optional: bool


def asked_of(name: Name, parts: Mapping[str, Part], extent: Extent, every: bool = False) -> Asked:
    """every: `auto` runs all parts, not only the first head, or where there is none draft model, exit or skip."""
    kinds = (*AT_ONCE, "decoder", *WITH_TARGET)
    drafting = [part for kind in kinds for part in parts if parts[part].kind == kind]
    names = offered(drafting if every else drafting[:1], parts) if name.auto else [name]
    words = {word.text: word for one in names for word in one.words}.values()
    models = tuple(dict.fromkeys(word.part for word in words if word.part is not None))
    fed = [
        tap for word in words if word.kind.feeds == "features" and word.part for tap in parts[word.part].keeps
    ]
    tables, free = sum(word.kind.bytes(extent) for word in words), any(word.kind.free for word in words)
    return Asked(models, tuple(dict.fromkeys(fed)), tables, free, name.auto)


def offered(models: Sequence[str], parts: Mapping[str, Part], tables: bool = True) -> list[Name]:
    """What `auto` chooses among, the first guess first. tables: whether drafters without a model may run."""

    def named(word: str) -> list[str]:
        fitting = runnable(next(kind for kind in KINDS if kind.word == word), parts)
        return [word if len(fitting) == 1 else f"{word}:{part}" for part in models if part in fitting]

    heads, chains, trees, streams, *own = map(named, (*WITH_HEAD, *WITH_MODEL, *WITH_TARGET))
    free, more = (["lookup"], ["lookup,recycle"]) if tables else ([], [])
    fused = [f"{first},lookup" for first in (*heads, *streams, *chains) if tables]
    return [
        parse(text, parts)
        for text in (*heads, *streams, *chains, *free, *trees, *more, *fused, *chain.from_iterable(own))
    ]


def goes_beside(text: str, parts: Mapping[str, Part]) -> bool:
    """Whether a drafter can draft on while the target checks, see `stays_behind`."""
    return stays_behind(text, parts) is None


def stays_behind(text: str, parts: Mapping[str, Part]) -> str | None:
    """Why a drafter cannot draft on while the target checks, alone or fused; None where it can: `auto` where one can,
    and who runs a draft model, or a head of which every level knows what those before it chose."""
    name = parse(text, parts)
    words = name.words or [word for one in offered(list(parts), parts) for word in one.words]
    kinds = {parts[word.part].kind for word in words if word.part}
    if any(word.kind.beside and word.part and _branches(parts[word.part]) for word in words):
        return None
    if kinds & {"exit", "skip"}:
        return "drafts with the model's own layers, which its pass is using"
    if kinds:
        return "drafts from the state that the model's pass ends with, and before that from nothing"
    return "runs nothing that could go on beside the model"


def _branches(part: Part) -> bool:
    """Whether it drafts other tokens behind another way that the text may go."""
    return part.kind != "head" or not part.product
