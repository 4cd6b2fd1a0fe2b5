"""The words of `--drafter`: what they ask of a bundle, known before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.manifest import Part

MODEL_FREE = ("lookup", "suffix", "recycle")
RECYCLED = 8
"""Successors of a token that recycling keeps."""
LEAST_INDEX = 64
"""Tokens that a lookup or suffix index holds at least."""
_DEPTHS = {"none": 0, "chain": 8, "tree": 5, "lookup": 16, "suffix": 12, "recycle": 4, "auto": 16}


@dataclass(frozen=True, slots=True)
class Word:
    """One drafter. kind: none, chain, tree, or one of MODEL_FREE. part: the draft model of a chain or a tree."""

    kind: str
    part: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What all words together need. parts: the draft models. tables: bytes of the drafters without one.

    optional: whether less than all of it is an answer, too: `auto` does what fits.
    """

    parts: tuple[str, ...]
    tables: int
    optional: bool


def split(name: str) -> list[str]:
    """The single words of a fused name. Raises ValueError for words that cannot be fused."""
    words = [w.strip() for w in name.split(",")]
    if len(words) > 1 and (len(set(words)) < len(words) or {"none", "auto"} & set(words)):
        raise ValueError(f"--drafter {name!r}: fused drafters must differ, and none and auto stand alone")
    return words


def understand(word: str, parts: Mapping[str, Part]) -> Word:
    """One word. parts: the draft models of the bundle. Raises ValueError that lists what there is."""
    if word in ("none", *MODEL_FREE):
        return Word(word)
    kind, _, part = word.partition(":")
    if kind in parts and not part:
        kind, part = "chain", kind
    if kind not in ("chain", "tree"):
        known = ", ".join([*names(parts), *parts, "auto"])
        raise ValueError(
            f"unknown drafter {word!r}: this bundle has {known} (several joined by commas are fused)"
        )
    if not parts:
        raise ValueError(
            f"--drafter {kind} needs a draft model and this bundle has none: "
            "use lookup, suffix or recycle, or export again with --drafter NAME=DIR"
        )
    part = part or next(iter(parts))
    if part not in parts:
        raise ValueError(f"the bundle has no draft model {part!r}: it has {', '.join(parts)}")
    return Word(kind, part)


def names(parts: Mapping[str, Part]) -> list[str]:
    """Every single drafter that a bundle with these draft models can run, `none` first."""
    return ["none", *(("chain", "tree") if parts else ()), *MODEL_FREE]


def needs(name: str, bundle: Bundle, context: int, store: int = 0, every: bool = False) -> Asked:
    """What a name needs. Raises ValueError for a name that nobody knows.

    store: bytes of a suffix store. every: `auto` runs all draft models, not only the first.
    """
    parts, vocab = bundle.manifest.drafters, bundle.manifest.target.vocab
    optional = name == "auto"
    chains = [f"chain:{part}" for part in parts]
    words = [*(chains if every else chains[:1]), "lookup", "recycle"] if optional else split(name)
    found = [understand(word, parts) for word in words]
    capacity = max(context, LEAST_INDEX)
    sizes = {"lookup": 180 * capacity, "suffix": 800 * capacity + store, "recycle": 5 * RECYCLED * vocab}
    models = dict.fromkeys(word.part for word in found if word.part is not None)
    return Asked(tuple(models), sum(sizes.get(word.kind, 0) for word in found), optional)


def usual_depth(name: str) -> int:
    """Levels that the deepest of these drafters goes down where the user does not say."""
    return max(_DEPTHS.get(word.split(":")[0].strip(), _DEPTHS["chain"]) for word in name.split(","))
