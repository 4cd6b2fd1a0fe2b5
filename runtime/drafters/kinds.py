"""One row a drafter: all that it takes to name it, to plan, price and build it; and the names that users write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from paceline.memory.errors import ArgumentError
from paceline.memory.model import FRONTIER
from paceline.runtime.contracts import Drafter
from paceline.runtime.control.estimates import Arm, CostCurve
from paceline.runtime.drafters import lookup, recycle, suffix
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.drafters.head import Growth, HeadDrafter
from paceline.runtime.drafters.plain import Plain
from paceline.runtime.drafters.store import SuffixStore
from paceline.runtime.drafters.tree import TreeModel
from paceline.runtime.drafters.words import AUTO, PLAIN, WANTED, WITH_HEAD, WITH_MODEL, WITH_TARGET, closest
from paceline.runtime.manifest import Part, PartKind
from paceline.runtime.model.head import Features, Head
from paceline.runtime.model.model import Model
from paceline.runtime.model.skipping import Skipping
from paceline.runtime.model.unrolled import Unrolled

_HEAD_LEVEL, _MODEL_PASS, _OWN_PASS = 0.05, 0.3, 0.6
"""Expected tokens that a level must bring where the clock may not choose: one of a head is far less than a pass,
one of the target with blocks left out far more."""
STEP_SECONDS = 5e-5
"""Of a draft pass outside the model, where nothing was measured."""
_LEAST_INDEX = 64
"""Tokens that a lookup or suffix index holds at least."""
_Supply = TypeVar("_Supply")


@dataclass(frozen=True, slots=True)
class Extent:
    """What the size of a drafter's tables depends on. context: tokens; store: bytes of a suffix store at most."""

    vocab: int
    context: int
    store: int = 0

    @property
    def index(self) -> int:
        """Tokens that an index of the text holds."""
        return max(self.context, _LEAST_INDEX)


@dataclass(frozen=True, slots=True)
class Supplies:
    """What a drafter is made from; all but the extent only where its kind asks for it.

    unrolled: drafts several levels a call with the model, where it has graphs for that.
    """

    extent: Extent
    model: Model | None = None
    head: Head | None = None
    unrolled: Unrolled | None = None
    skipping: Skipping | None = None
    store: SuffixStore | None = None
    features: Features | None = None
    growth: Growth = "dynamic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A way to draft.

    word: of `--drafter`. make: from its name and supplies. runs: the kind of draft model that it runs, whose name may
    follow the word after a colon; None where it runs none. feeds: what of the target's it must be shown for every token
    of the text: the tokens, which can be read again at any time, or features, the taps that its part reads, which only
    a pass of the target brings. depth: levels that it goes down at most where neither the user nor its part says. rows:
    of a draft pass; 1 of a head, whose levels are one pass. bytes: what it holds besides models at most; equals its
    footprint. flat: seconds of a proposal outside the model, seeing: seconds for each token of the text that it has not
    seen, both first guesses. usual: acceptance of a token where none was recorded; hope: what it could be at best, a
    drafter that cannot pay even so is not tried.
    """

    word: str
    make: Callable[[str, Supplies], Drafter]
    runs: PartKind | None
    feeds: Literal["tokens", "features"]
    depth: int
    rows: int
    bytes: Callable[[Extent], int]
    flat: float
    seeing: float
    usual: float
    hope: float

    @property
    def free(self) -> bool:
        """Whether it drafts without a model."""
        return self.runs is None and self.depth > 0


def _given(supplied: _Supply | None, name: str) -> _Supply:
    if supplied is None:
        raise RuntimeError(f"{name} was not given all that it is made from")
    return supplied


def _nothing(extent: Extent) -> int:
    return 0


KINDS: tuple[Kind, ...] = (
    Kind(
        word="none",
        make=lambda name, s: Plain(),
        runs=None,
        feeds="tokens",
        depth=0,
        rows=0,
        bytes=_nothing,
        flat=0.0,
        seeing=0.0,
        usual=0.0,
        hope=0.0,
    ),
    Kind(
        word="chain",
        make=lambda name, s: ChainModel(_given(s.model, name), s.extent.vocab, name, unrolled=s.unrolled),
        runs="decoder",
        feeds="tokens",
        depth=8,
        rows=1,
        bytes=_nothing,
        flat=0.0,
        seeing=0.0,
        usual=0.65,
        hope=0.94,
    ),
    Kind(
        word="tree",
        make=lambda name, s: TreeModel(_given(s.model, name), s.extent.vocab, name, FRONTIER),
        runs="decoder",
        feeds="tokens",
        depth=5,
        rows=FRONTIER,
        bytes=_nothing,
        flat=0.0,
        seeing=0.0,
        usual=0.65,
        hope=0.95,
    ),
    Kind(
        word="head",
        make=lambda name, s: HeadDrafter(_given(s.head, name), _given(s.features, name), name, s.growth),
        runs="head",
        feeds="features",
        depth=8,
        rows=1,
        bytes=_nothing,
        flat=1e-4,
        seeing=0.0,
        usual=0.65,
        hope=0.95,
    ),
    Kind(
        word="skip",
        make=lambda name, s: ChainModel(_given(s.skipping, name), s.extent.vocab, name),
        runs="skip",
        feeds="tokens",
        depth=8,
        rows=1,
        bytes=_nothing,
        flat=0.0,
        seeing=0.0,
        usual=0.65,
        hope=0.95,
    ),
    Kind(
        word="lookup",
        make=lambda name, s: lookup.PromptLookup(capacity=s.extent.index),
        runs=None,
        feeds="tokens",
        depth=16,
        rows=0,
        bytes=lambda extent: lookup.TOKEN_BYTES * extent.index,
        flat=2e-5,
        seeing=2e-6,
        usual=0.2,
        hope=0.95,
    ),
    Kind(
        word="suffix",
        make=lambda name, s: suffix.Suffix(s.store, capacity=s.extent.index),
        runs=None,
        feeds="tokens",
        depth=12,
        rows=0,
        bytes=lambda extent: suffix.TOKEN_BYTES * extent.index + extent.store,
        flat=5e-5,
        seeing=2e-5,
        usual=0.2,
        hope=0.95,
    ),
    Kind(
        word="recycle",
        make=lambda name, s: recycle.Recycle(s.extent.vocab),
        runs=None,
        feeds="tokens",
        depth=4,
        rows=0,
        bytes=lambda extent: recycle.ENTRY_BYTES * recycle.WIDTH * extent.vocab,
        flat=1.2e-4,
        seeing=0.0,
        usual=0.2,
        hope=0.95,
    ),
)


@dataclass(frozen=True, slots=True)
class Word:
    """One drafter as the user wrote it. part: its draft model or head. depth: levels that it goes down at most."""

    text: str
    kind: Kind
    part: str | None
    depth: int


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
    if len({(word.kind.word, word.part) for word in found}) < len(found):
        raise wrong
    return Name(",".join(word.text for word in found), found)


def _understand(text: str, parts: Mapping[str, Part]) -> Word:
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
    deepest = max(parts[part].drafts) if kind.runs == "head" else kind.depth
    return Word(text, kind, part, deepest)


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
    """every: `auto` runs all parts, not only the first head, or where there is none the first draft model, or skip."""
    kinds = ("head", "decoder", "skip")
    drafting = [part for kind in kinds for part in parts if parts[part].kind == kind]
    names = offered(drafting if every else drafting[:1], parts) if name.auto else [name]
    words = {word.text: word for one in names for word in one.words}.values()
    models = tuple(dict.fromkeys(word.part for word in words if word.part is not None))
    fed = [
        tap for word in words if word.kind.feeds == "features" and word.part for tap in parts[word.part].reads
    ]
    tables, free = sum(word.kind.bytes(extent) for word in words), any(word.kind.free for word in words)
    return Asked(models, tuple(dict.fromkeys(fed)), tables, free, name.auto)


def offered(models: Sequence[str], parts: Mapping[str, Part], tables: bool = True) -> list[Name]:
    """What `auto` chooses among, the first guess first. tables: whether drafters without a model may run."""

    def named(word: str) -> list[str]:
        fitting = runnable(next(kind for kind in KINDS if kind.word == word), parts)
        return [word if len(fitting) == 1 else f"{word}:{part}" for part in models if part in fitting]

    heads, chains, trees, skips = map(named, (*WITH_HEAD, *WITH_MODEL, *WITH_TARGET))
    free, more = (["lookup"], ["lookup,recycle"]) if tables else ([], [])
    fused = [f"{first},lookup" for first in (*heads, *chains) if tables]
    return [parse(text, parts) for text in (*heads, *chains, *free, *trees, *more, *fused, *skips)]


def level_seconds(one: float, deepest: float, levels: int) -> float:
    """Of one level more of a head, by what drafting one level and all of them takes."""
    return max((deepest - one) / (levels - 1), 0.0) if levels > 1 else one / 2


def arm_of(name: Name, depth: int, draft: Callable[[str], CostCurve]) -> Arm:
    """First guesses for a drafter. draft: the cost curve of a draft model by rows, of a head by levels."""
    step = flat = seeing = 0.0
    for word in name.words:
        kind = word.kind
        flat, seeing = flat + kind.flat, seeing + kind.seeing
        if word.part is not None:
            curve = draft(word.part)
            if kind.runs == "head":
                level = level_seconds(curve.seconds(1, 0), curve.seconds(curve.widest, 0), curve.widest)
                step, flat = step + level, flat + curve.seconds(1, 0) - level
                seeing += curve.seconds(1, 0) / FRONTIER
            else:
                step += curve.seconds(kind.rows, 0) + STEP_SECONDS * kind.rows
                seeing += curve.seconds(FRONTIER, 0) / FRONTIER * (kind.runs == "decoder")
    hope = max(word.kind.hope for word in name.words)
    part = name.models[0] if name.models else None
    members = tuple(word.text for word in name.words) if part and len(name.words) > 1 else ()
    runs = [word.kind.runs for word in name.words if word.part]
    fixed = _OWN_PASS if "skip" in runs else _MODEL_PASS if "decoder" in runs else _HEAD_LEVEL
    return Arm(name.text, depth, part, step, flat + 1e-5, hope, seeing, members, fixed)
