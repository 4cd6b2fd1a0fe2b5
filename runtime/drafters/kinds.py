"""One row a drafter: all that it takes to name it, to plan, price and build it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from paceline.memory.model import FRONTIER
from paceline.runtime.beside import Aside
from paceline.runtime.contracts import Drafter
from paceline.runtime.drafters import lookup, recycle, suffix
from paceline.runtime.drafters.ahead import Ahead
from paceline.runtime.drafters.branches import Branches
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.drafters.exits import ExitDrafter, LayerDrafter
from paceline.runtime.drafters.growing import Chains, Trees
from paceline.runtime.drafters.head import Growth, HeadDrafter
from paceline.runtime.drafters.head_ahead import HeadAhead
from paceline.runtime.drafters.plain import Plain
from paceline.runtime.drafters.store import SuffixStore
from paceline.runtime.drafters.streaming import Streaming
from paceline.runtime.drafters.tree import TreeModel
from paceline.runtime.manifest import PartKind
from paceline.runtime.model.exits import Exits
from paceline.runtime.model.head import Features, Head
from paceline.runtime.model.model import Model
from paceline.runtime.model.skipping import Skipping
from paceline.runtime.model.streams import Streams
from paceline.runtime.model.unrolled import Unrolled

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

    unrolled: drafts several levels a call with the model, where it has graphs for that. beside: where a draft model
    leaves work for the time of the target's pass, and on which branches; None: drafting is serial.
    """

    extent: Extent
    model: Model | None = None
    head: Head | Streams | None = None
    unrolled: Unrolled | None = None
    skipping: Skipping | None = None
    exits: Exits | None = None
    store: SuffixStore | None = None
    features: Features | None = None
    growth: Growth = "dynamic"
    beside: Aside | None = None
    branches: Branches = "weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A way to draft.

    word: of `--drafter`. make: from its name and supplies. runs: the kind of draft model that it runs, whose name may
    follow the word after a colon; None where it runs none. feeds: what of the target's it must be shown for every token
    of the text: the tokens, which can be read again at any time, or features, the taps that its part reads, which only
    a pass of the target brings. depth: levels that it goes down at most where neither the user nor its part says. rows:
    of a draft pass; 1 of what drafts all levels in one. bytes: what it holds besides models at most; equals its
    footprint. flat: seconds of a proposal outside the model, seeing: seconds for each token of the text that it has not
    seen, both first guesses. usual: acceptance of a token where none was recorded; hope: what it could be at best, a
    drafter that cannot pay even so is not tried. beside: whether it drafts on while the target checks.
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
    beside: bool = False

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


def _head_drafter(name: str, given: Supplies) -> Drafter:
    head, features = given.head, _given(given.features, name)
    if not isinstance(head, Head):
        raise RuntimeError(f"{name} was not given the head that it is made from")
    drafter = HeadDrafter(head, features, name, given.growth)
    if given.beside is None or head.model.part.product:
        return drafter
    return HeadAhead(drafter, head, features, given.extent.vocab, given.beside, given.branches)


def _chain_drafter(name: str, given: Supplies) -> Drafter:
    model = _given(given.model, name)
    chain = ChainModel(model, given.extent.vocab, name, unrolled=given.unrolled)
    if given.beside is None:
        return chain
    return Ahead(model, given.extent.vocab, chain, Chains(name), given.beside, given.branches)


def _tree_drafter(name: str, given: Supplies) -> Drafter:
    model = _given(given.model, name)
    tree = TreeModel(model, given.extent.vocab, name, FRONTIER)
    if given.beside is None:
        return tree
    return Ahead(model, given.extent.vocab, tree, Trees(name), given.beside, given.branches)


def _stream_drafter(name: str, given: Supplies) -> Drafter:
    streams, vocab = given.head, given.extent.vocab
    if not isinstance(streams, Streams):
        raise RuntimeError(f"{name} was not given the streams that it is made from")
    drafter = HeadDrafter(streams, None, name, given.growth)
    if given.beside is None:
        return drafter
    ways = Streaming(drafter, streams)
    return Ahead(streams.model, vocab, drafter, ways, given.beside, given.branches, reading=ways)


def _exit_drafter(name: str, given: Supplies) -> Drafter:
    exits = _given(given.exits, name)
    if exits.attends:
        return ExitDrafter(exits, _given(given.features, name), given.extent.vocab, name)
    return LayerDrafter(exits, given.extent.vocab, name)


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
        make=_chain_drafter,
        runs="decoder",
        feeds="tokens",
        depth=8,
        rows=1,
        bytes=_nothing,
        flat=0.0,
        seeing=0.0,
        usual=0.65,
        hope=0.94,
        beside=True,
    ),
    Kind(
        word="tree",
        make=_tree_drafter,
        runs="decoder",
        feeds="tokens",
        depth=5,
        rows=FRONTIER,
        bytes=_nothing,
        flat=0.0,
        seeing=0.0,
        usual=0.65,
        hope=0.95,
        beside=True,
    ),
    Kind(
        word="streams",
        make=_stream_drafter,
        runs="streaming decoder",
        feeds="tokens",
        depth=8,
        rows=1,
        bytes=_nothing,
        flat=1e-4,
        seeing=0.0,
        usual=0.65,
        hope=0.95,
        beside=True,
    ),
    Kind(
        word="head",
        make=_head_drafter,
        runs="head",
        feeds="features",
        depth=8,
        rows=1,
        bytes=_nothing,
        flat=1e-4,
        seeing=0.0,
        usual=0.65,
        hope=0.95,
        beside=True,
    ),
    Kind(
        word="exit",
        make=_exit_drafter,
        runs="exit",
        feeds="features",
        depth=8,
        rows=1,
        bytes=_nothing,
        flat=0.0,
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
