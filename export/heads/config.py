"""What a trained head is: its `config.json`, and the weights that it must then have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from paceline.export.errors import ExportError
from paceline.export.folder import read_json
from paceline.runtime.manifest import Manifest
from paceline.runtime.part import Share, Tap, Tokens, Width

CONFIG, WEIGHTS = "config.json", "model.safetensors"
BUCKETS = (1, 2, 3, 4, 6, 8)
"""Depths that there are graphs for, as far as a head goes."""
TREES = ((2, 4), (3, 4), (5, 4), (4, 2))
"""Levels of the trees that there are graphs for, and how many nodes of a level have children."""
DEEPEST = BUCKETS[-1]
"""Levels of a head beyond that are never drafted."""
WIDEST = 15
"""Levels of a DFlash head at most: a block of 16 with the root."""
TOGETHER = 2
"""Levels that a step of a Falcon head drafts at once."""
VERSION = 1
MARK = "paceline_head"

Shapes = dict[str, tuple[int, ...]]
Method = Literal["eagle", "eagle3", "hydra", "medusa", "dflash", "clover", "falcon", "kangaroo"]
HeadQuant = Literal["none", "int8", "int4"]
QUANTS: tuple[HeadQuant, ...] = ("none", "int8", "int4")
"""How the matrices of a head are stored in a bundle."""


class TargetId(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The target that a head was trained for: the name of its bundle, sha256 of its graph and of its weights."""

    name: str
    graph: str
    data: str

    @property
    def weights(self) -> str:
        """What stands for its weights, with which hidden states change: other taps alone are another graph."""
        return self.data or self.graph


def target_id(manifest: Manifest) -> TargetId:
    """Of a bundle: what hidden states depend on, and nothing that is measured or named later."""
    part, files = manifest.target, manifest.files
    data = files[part.data].sha256 if part.data in files else ""
    return TargetId(name=manifest.name, graph=files[part.graph].sha256, data=data)


class HeadConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sizes and choices of a head. Medusa has no layer: `heads` to `rope_theta` mean nothing there, and `inner`
    nothing in Kangaroo.
    """

    paceline_head: Literal[1] = 1
    """The version of this layout."""
    method: Method
    hidden: Width
    """Of the target, and of the head."""
    target_vocab: Tokens
    taps: Annotated[list[Tap], Meta(min_length=1, max_length=16)]
    """Of the target, in the order in which they stand side by side."""
    vocab: Tokens
    """Rows of its own vocabulary."""
    heads: Width
    kv_heads: Width
    head_dim: Annotated[int, Meta(ge=2, le=2**17, multiple_of=2)]
    inner: Width
    rope_theta: Annotated[float, Meta(gt=0, le=1e12)]
    epsilon: Annotated[float, Meta(gt=0, le=0.1)]
    depth: Annotated[int, Meta(ge=1, le=64)]
    """The most levels that it drafts."""
    layers: Annotated[int, Meta(ge=0, le=16)] = 1
    """Attention layers of a method that may have several, or none."""
    tied: bool
    """Its table of tokens is also its LM head, but for the row of tokens that it does not know."""
    target: TargetId
    acceptance: Annotated[list[Share], Meta(max_length=64)] = []
    """Of greedy drafts, by level, where all levels before were right; measured on held-out answers."""

    ranks: Annotated[
        list[Annotated[list[Share], Meta(min_length=1, max_length=16)]], Meta(max_length=64)
    ] = []
    """By level and rank, how often a choice was right; measured with `acceptance`."""

    @property
    def whole(self) -> bool:
        """Whether its vocabulary is the target's."""
        return self.vocab == self.target_vocab

    @property
    def depths(self) -> list[int]:
        """Depths that there are graphs for; of DFlash, whose levels see each other, all at once; none of Kangaroo,
        which drafts a token a pass.
        """
        if self.method == "dflash":
            return [self.depth]
        if self.method == "kangaroo":
            return []
        deepest = min(self.depth, DEEPEST)
        return sorted({deepest, *(depth for depth in BUCKETS if depth <= deepest)})

    @property
    def trees(self) -> list[tuple[int, int]]:
        """Levels and parents a level of the trees that there are graphs for."""
        return [shape for shape in TREES if shape[0] <= self.depth and shape[1] <= self.vocab]

    @property
    def columns(self) -> int:
        """Columns of queries, keys and values side by side."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim


@dataclass(frozen=True, slots=True)
class Style:
    """What methods and published heads do otherwise than most that `paceline train head` makes.

    fused: taps go through a matrix; a single tap is the state otherwise. normed_taps: each is normed before.
    entry: what a layer reads: a `pair` of token and state, each normed, side by side; or both `joined` by a matrix,
    to whose result the layer adds (EAGLE-1); or the `state` alone, normed (Hydra). last_norm: whether a `state` that a
    head goes on from stands behind the
    last norm (EAGLE-3.1), the `logits` alone do, or there is `none`. whole_table: its table of tokens is the target's.
    own_heads: every level has an LM head of its own, and a bias. blocks: of each level of a published Hydra head, which
    sees the token that was read last, too; 0: its levels are those that are trained here. feed_forward: whether its
    layer has more than attention.
    """

    fused: bool = True
    normed_taps: bool = True
    entry: Literal["pair", "joined", "state"] = "pair"
    last_norm: Literal["state", "logits", "none"] = "state"
    whole_table: bool = False
    own_heads: bool = False
    blocks: int = 0
    feed_forward: bool = True


TRAINED_HERE = Style()


def read_config(folder: Path) -> HeadConfig:
    """The configuration of a head that was trained here. Raises ExportError, whose message is one line."""
    path = folder / CONFIG
    given = read_json(path)
    if given[MARK] != VERSION:
        raise ExportError(
            f"{path}: heads of the form {str(given[MARK])[:20]!r} are not known, only {VERSION}: upgrade paceline, or "
            "train the head again with this version"
        )
    try:
        config = msgspec.convert(given, HeadConfig)
    except msgspec.ValidationError as error:
        raise ExportError(f"{path}: {error}: train the head again, or correct the file") from None
    check_config(config, path)
    return config


def check_made(config: HeadConfig) -> None:
    """Raise ExportError for a new head that nobody could read again: msgspec checks what it reads, not what is made."""
    try:
        msgspec.convert(msgspec.to_builtins(config), HeadConfig)
    except msgspec.ValidationError as error:
        raise ExportError(f"such a head could not be read again: {error}: choose other sizes") from None


def check_target(name: str, config: HeadConfig, hidden: int, vocab: int) -> None:
    """Raise ExportError for a head of another target."""
    for what, own, theirs in (
        ("hidden states of", config.hidden, hidden),
        ("a vocabulary of", config.target_vocab, vocab),
    ):
        if own != theirs:
            raise ExportError(
                f"the head {name} was trained for a target with {what} {own}, and this one has {theirs}: "
                "train a head for this target"
            )


def check_config(config: HeadConfig, path: Path) -> None:
    """Raise ExportError for sizes and choices that do not go together."""

    def refuse(what: str) -> None:
        raise ExportError(f"{path}: {what}: train the head again, or correct the file")

    if config.vocab > config.target_vocab:
        refuse(f"a vocabulary of {config.vocab} out of the target's {config.target_vocab}")
    if len(set(config.taps)) != len(config.taps):
        refuse("the same tap twice")
    if config.heads % config.kv_heads:
        refuse(f"{config.heads} heads do not share {config.kv_heads} key heads evenly")
    if config.tied and config.method in ("medusa", "kangaroo"):
        refuse(f"{config.method} has no table of tokens that its LM head could be")
    if config.method == "kangaroo" and (len(config.taps) != 1 or config.taps == ["hidden"]):
        refuse(f"kangaroo reads one layer of the target, not {', '.join(config.taps)}")
    if config.method == "dflash" and not (config.layers and config.depth <= WIDEST):
        refuse(f"dflash has {config.layers} layers and {config.depth} levels, not 1 to 16 and 1 to {WIDEST}")
