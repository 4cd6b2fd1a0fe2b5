"""The manifest of a bundle: what it holds and how to run it. Strict: an unknown key is an error."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

SCHEMA = 1
MANIFEST = "manifest.json"
RESERVED_NAMES = frozenset(
    "none chain tree lookup suffix recycle auto medusa hydra eagle eagle3 dflash ppd target mirror".split()
)

Positive = Annotated[int, Meta(ge=1, le=2**40)]
Name = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,63}\Z")]
RelativePath = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._/-]{0,199}\Z")]


class BundleError(Exception):
    """A bundle that cannot be used; the message is one line that names the cause and the remedy."""


class File(Struct, frozen=True, forbid_unknown_fields=True):
    """Size and digest of one file."""

    bytes: Annotated[int, Meta(ge=0)]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Rope(Struct, frozen=True, forbid_unknown_fields=True):
    """Rotary frequencies that depend on the context limit, fixed at load (dynamic NTK, longrope).

    dynamic: `base`, `factor`, `original_context` and `dim` give the frequencies by formula.
    longrope: `short` and `long` are complete inverse frequencies, chosen by whether the limit exceeds
    `original_context`; `short_scale`, `long_scale` multiply cos and sin.
    """

    kind: Literal["dynamic", "longrope"]
    original_context: Positive
    dim: Positive
    base: float = 10000.0
    factor: float = 1.0
    short: list[float] = []
    long: list[float] = []
    short_scale: float = 1.0
    long_scale: float = 1.0


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """One model of the bundle: a graph that follows the graph contract, and its sizes."""

    graph: RelativePath
    architecture: str
    layers: Positive
    kv_heads: Positive
    head_dim: Positive
    hidden: Positive
    vocab: Positive
    """Rows of the logits; may be padded beyond the tokenizer."""
    context: Positive
    parameters: Positive
    quant: Literal["none", "int8", "int4"]
    block: Positive | None = None
    window: Positive | None = None
    """The smallest sliding window of any layer."""
    taps: list[str] = []
    rope: Rope | None = None
    nodes_per_layer: float = 0.0
    """Graph nodes a layer runs after optimisation, for `inspect`."""


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about a bundle but its weights."""

    schema: int
    name: str
    licence: str
    profile: Literal["cpu"]
    producer: dict[str, str]
    """Versions of what made it."""
    target: Part
    drafters: dict[Name, Part] = {}
    acceptance: dict[str, float] = {}
    """Measured tokens per round, by drafter."""
    files: dict[RelativePath, File] = {}


class Generation(Struct, frozen=True):
    """`generation.json`: end-of-sequence ids and the sampling defaults of the model's authors."""

    eos_ids: list[int] = []
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def read_manifest(folder: Path) -> Manifest:
    """Parse and check `manifest.json`. Raises BundleError."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(
            f"no bundle at {folder}: there is no such folder (make one with 'paceline export MODEL OUT')"
        )
    if not path.is_file():
        raise BundleError(
            f"{folder} is no bundle: it has no {MANIFEST} (make one with 'paceline export MODEL OUT')"
        )
    try:
        raw = path.read_bytes()
        schema = msgspec.json.decode(raw, type=_Schema).schema
        if schema > SCHEMA:
            raise BundleError(
                f"{path}: schema {schema} is newer than this paceline reads ({SCHEMA}): upgrade paceline, "
                "or export the model again"
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: {error}; export the model again") from None
    _check(manifest, path)
    return manifest


class _Schema(Struct):
    schema: int


def _check(manifest: Manifest, path: Path) -> None:
    for name in manifest.files:
        if ".." in PurePosixPath(name).parts or "//" in name or name.endswith("/"):
            raise BundleError(f"{path}: the file name {name!r} leaves the bundle; do not use this bundle")
    for what, part in {"target": manifest.target, **manifest.drafters}.items():
        if part.graph not in manifest.files:
            raise BundleError(
                f"{path}: the graph of {what}, {part.graph!r}, is not among its files; export again"
            )
    if reserved := RESERVED_NAMES.intersection(manifest.drafters):
        raise BundleError(
            f"{path}: a drafter may not be named {sorted(reserved)[0]!r}; export with another name"
        )


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json`, readable and stable."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / MANIFEST).write_bytes(text + b"\n")
