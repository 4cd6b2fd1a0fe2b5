"""What an export tells: its stages as they go, and what it wrote; the manifest is the part of it that stays."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.export.check import Agreement
from paceline.export.loss import Loss
from paceline.export.order import Order
from paceline.export.shrink import Source, block_of, quant_of
from paceline.export.storage import Profile
from paceline.runtime.manifest import SCHEMA, File, Manifest, Part, Rope, Weight, as_label

if TYPE_CHECKING:
    from paceline.export.recipe import Recipe

Progress = Callable[[str, str, float], None]
"""Takes a part of the bundle, the stage it is in, and how much of the stage is done, 0 to 1."""

STAGES = (
    "find files",
    "load",
    "reference",
    "calibrate",
    "make graph",
    "simplify",
    "compress",
    "write",
    "check",
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a manifest says about a model, besides where its files are."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    """Rows of the logits."""
    context: int
    """Longest text in tokens, prompt and answer together."""
    window: int | None
    """The smallest sliding window of any layer."""
    parameters: int
    rope: Rope | None
    """Present if rotary frequencies depend on the length of the text."""


@dataclass(frozen=True, slots=True)
class PartReport:
    """One exported model.

    agreement: of the graph with torch, by the weights that are stored and without rounding of activations.
    matrix_error: the worst relative error of a quantised matrix, 0 without. calibrated: whether rounding followed a
    text. seconds: by stage. loss: what rounding costs, or None where nothing is rounded and no text was named.
    """

    part: Part
    bytes: int
    agreement: Agreement
    matrix_error: float
    calibrated: bool
    seconds: Mapping[str, float]
    loss: Loss | None
    notes: tuple[str, ...] = ()
    """What is to be said of its weights."""
    recipe: Recipe | None = None
    reference: str = "torch"
    """What the graph was compared with."""


@dataclass(frozen=True, slots=True)
class HeadReport:
    """One exported head.

    agreement: of its graphs with numpy, by the weights that are stored and without rounding of activations. kept: for
    each depth the share of places where it chooses as the head that was trained. matrix_error, seconds: as of a part.
    """

    part: Part
    bytes: int
    agreement: Agreement
    kept: tuple[float, ...]
    matrix_error: float
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SkipReport:
    """One part that drafts with the target's own layers.

    share: of the bytes of all blocks, those left out. agreement: on the text of the search, the share of tokens that it
    chooses as the target. round_tokens: a round with chains of four, on what the search did not see. price: of a pass,
    and row: of one more row to verify, in passes of the target. depth, gain: of the chain that is predicted to be
    fastest, times plain decoding; 0 and 1 where none is.
    """

    part: Part
    bytes: int
    share: float
    agreement: float
    round_tokens: float
    price: float
    row: float
    depth: int
    gain: float
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ExitReport:
    """One part that drafts with the target's first layers as they are.

    right: by layer, how often it chooses as the target does on a sample text.
    """

    part: Part
    bytes: int
    right: Mapping[int, float]
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SplitReport:
    """A target in two graphs.

    bytes: of both, and of what the exit has, of which `copied` are rows of the LM head that are there twice. share: of
    the bytes that a pass reads, those of the first one, LM head included. right: by rank, how often it named the
    target's choice on a sample text.
    """

    part: Part
    bytes: int
    copied: int
    share: float
    right: Sequence[float]
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Report:
    """What was written. bytes counts all files of the bundle; parts: none where a finished bundle got heads."""

    folder: Path
    manifest: Manifest
    parts: Mapping[str, PartReport]
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()
    """What of the checkpoint will not work, or was left out."""
    heads: Mapping[str, HeadReport] = field(default_factory=dict)
    skips: Mapping[str, SkipReport] = field(default_factory=dict)
    exits: Mapping[str, ExitReport] = field(default_factory=dict)
    split: SplitReport | None = None


class Stages:
    """Times the stages of one part and shows them."""

    def __init__(self, part: str, show: Progress) -> None:
        self._part, self._show = part, show
        self.seconds: dict[str, float] = {}
        self._stage, self._since = "", 0.0

    def time(self, stage: str) -> Stages:
        """Enter a stage: use as a context manager."""
        self._stage = stage
        return self

    def __enter__(self) -> Callable[[float], None]:
        self._since = time.monotonic()
        stage = self._stage
        self._show(self._part, stage, 0.0)
        return lambda share: self._show(self._part, stage, share)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        took = time.monotonic() - self._since
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + took
        if kind is None:
            self._show(self._part, self._stage, 1.0)


def silent(part: str, stage: str, share: float) -> None:
    """Shows no progress."""


def part_of(
    graph: str,
    architecture: str,
    known: Facts,
    source: Source,
    order: Order,
    taps: tuple[str, ...],
    nodes: float,
    weights: dict[str, Weight],
    layout: int | None,
) -> Part:
    """What the manifest says of one part; its caches are to be named."""
    return Part(
        graph=graph,
        architecture=architecture,
        layers=known.layers,
        kv_heads=known.kv_heads,
        head_dim=known.head_dim,
        hidden=known.hidden,
        vocab=known.vocab,
        context=known.context,
        parameters=known.parameters,
        quant=quant_of(order, source),
        block=block_of(order),
        window=known.window,
        taps=list(taps),
        rope=known.rope,
        nodes_per_layer=round(nodes, 1),
        layout=layout,
        weights=weights,
    )


def manifest_of(
    titles: tuple[str, str],
    parts: Mapping[str, PartReport | HeadReport],
    profile: Profile,
    work: Path,
    packages: Sequence[str],
) -> Manifest:
    """The manifest of the files in `work`. titles: name and licence. packages: what made them."""
    return Manifest(
        schema=SCHEMA,
        name=as_label(titles[0]),
        licence=as_label(titles[1]),
        profile=profile,
        producer={package: _version(package) for package in packages},
        target=parts["target"].part,
        drafters={name: made.part for name, made in parts.items() if name != "target"},
        files=files_in(work, work),
    )


def files_in(folder: Path, bundle: Path) -> dict[str, File]:
    """Sizes and digests of all files in a folder of a bundle, by their paths in it."""
    return {
        path.relative_to(bundle).as_posix(): File(path.stat().st_size, _digest(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
