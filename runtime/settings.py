"""What a session is to run with, once the choices of `load` are settled, and what follows from that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paceline.memory.cache import CacheFormat
from paceline.memory.errors import ArgumentError
from paceline.memory.model import FRONTIER
from paceline.memory.room import Room
from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.drafters.branches import Branches
from paceline.runtime.drafters.head import Growth
from paceline.runtime.drafters.kinds import KINDS, Extent
from paceline.runtime.drafters.names import Asked, Name, asked_of
from paceline.runtime.drafters.store import STORE_BYTES
from paceline.runtime.manifest import Part
from paceline.runtime.places import Places

_SMALL = 50_000_000
"""Below this many parameters a second thread costs a draft model more than it brings."""
_BESIDE = 8
"""Passes beside one of the target's that have room in a draft model's cache, besides those of the proposal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the user chose once for a session."""

    context: int
    threads: int
    room: Room
    draft_depth: int | None
    """Levels that a drafter goes down; None: as many as suit it."""
    places: Places
    suffix_store: Path | None
    cache: CacheFormat = "fp32"
    overflow: str = "stop"
    """What a full context does: `stop` ends the answer, `slide` drops its oldest part."""
    growth: Growth = "dynamic"
    """How a draft head branches."""
    adapt: bool = False
    """Whether draft models learn."""
    mirror: bool = False
    """Whether drafters go on beside the target's pass, on a thread that the target then lacks."""
    branches: Branches = "weight"
    """What of all that the target may say is looked at there."""
    mirrored: str | None = None
    """What `--mirror auto` chose, and why, in a line; None without it."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Where `--device auto` put each part, and why, in a line."""
    chunk: int = 256
    """Prompt tokens a pass."""
    allowed: tuple[str, ...] | None = None
    """Draft models that memory allows; None: all of the bundle."""
    reserved: bool = False
    """Whether buffers become resident at once: a budget holds from the start or not at all."""

    @property
    def target_threads(self) -> int:
        """Threads of the target."""
        return self.threads - 1 if self.mirror else self.threads

    def draft_threads(self, part: Part) -> int:
        """Threads of a draft model: what runs beside the target has the one that the target lacks."""
        beside = ("decoder", "streaming decoder", "head")
        return 1 if self.mirror and part.kind in beside else draft_threads(part, self.threads)

    @property
    def halved(self) -> bool:
        """Whether the target runs in two graphs."""
        return self.mirror and self.branches == "exit"


def extent_of(bundle: Bundle, settings: Settings) -> Extent:
    """What the sizes of tables depend on."""
    store = STORE_BYTES if settings.suffix_store else 0
    return Extent(bundle.manifest.target.vocab, settings.context, store)


def needs(name: Name, bundle: Bundle, settings: Settings, every: bool = False) -> Asked:
    """What a drafter needs under these settings; every: `auto` with all draft models."""
    return asked_of(name, bundle.manifest.drafters, extent_of(bundle, settings), every)


def scratch_rows(part: Part, settings: Settings) -> int:
    """Rows of a draft model's cache for what is not committed: of a tree, which streams draft without any, a level for
    each step down, and one more; and those of passes beside the target's."""
    if part.kind != "decoder":
        return beside_rows(part, settings)
    levels = (settings.draft_depth or max(kind.depth for kind in KINDS if kind.rows > 1)) + 1
    return FRONTIER * levels + beside_rows(part, settings)


def beside_rows(part: Part, settings: Settings) -> int:
    """Rows of a draft model's cache for passes beside the target's, where streams read what that looks at, too."""
    if not settings.mirror or part.kind not in ("decoder", "streaming decoder"):
        return 0
    return FRONTIER * _BESIDE + (FRONTIER * part.deepest if part.streams else 0)


def learns(part: Part, settings: Settings) -> bool:
    """Whether a part learns from use."""
    return settings.adapt and part.training is not None


def draft_threads(part: Part, threads: int) -> int:
    """Threads of a draft model, of those that the target has."""
    return 1 if part.parameters < _SMALL else threads


def context_limit(part: Part, asked: int | None) -> int:
    """The model's context or the user's, whichever is smaller."""
    if asked is not None and asked < 2:
        raise ArgumentError(f"a context of {asked} tokens holds no conversation: use 2 or more")
    return part.context if asked is None else min(asked, part.context)
