"""The manifest of a bundle: what it holds and how to run it. Strict: an unknown key is an error."""

from __future__ import annotations

import glob
import math
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from paceline.memory.cache import CacheFormat
from paceline.memory.errors import Error
from paceline.runtime.bundle.place import leads_out
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.drafters.words import WORDS

SCHEMA = 4
"""What is written. Still read: 1, which knew no packed weights, 2, no forms of the cache, 3, no kinds of parts."""
LAYOUT = 2
"""The newest packed layout that this version reads; version 1 has neither 5 and 6 bits nor minima."""
MANIFEST = "manifest.json"
LARGEST = 1 << 24
"""Bytes of a manifest."""
MOST_ADAPTERS = 1 << 32
"""Bytes of the adapters of a part."""
TOKENIZER = "tokenizer.json"
RESERVED_NAMES = frozenset([*WORDS, *"medusa hydra eagle eagle3 dflash ppd target mirror".split()])

# Bounds beyond any model in use: a manifest with nonsense fails here and not in an allocation.
Positive = Annotated[int, Meta(ge=1, le=2**40)]
Layers = Annotated[int, Meta(ge=1, le=1000)]
Width = Annotated[int, Meta(ge=1, le=2**17)]
Tokens = Annotated[int, Meta(ge=1, le=2**24)]
Token = Annotated[int, Meta(ge=0, lt=2**24)]
Measure = Annotated[float, Meta(ge=0, le=1e9)]
# A round yields a token of the target and at most as many more as drafts may be deep.
RoundTokens = Annotated[float, Meta(ge=1, le=1025)]
Scale = Annotated[float, Meta(gt=0, le=1e12)]
# No control characters, line separators or marks that turn the direction of text: terminals show these strings.
_LABEL = re.compile("\\A[^\\x00-\\x1f\\x7f-\\x9f\\u200b-\\u200f\\u2028-\\u202e\\u2066-\\u2069]*\\Z")
_LABEL_LENGTH = 200
Label = Annotated[str, Meta(max_length=_LABEL_LENGTH, pattern=_LABEL.pattern)]
Dtype = Literal["float32", "float16", "bfloat16", "int8", "uint8"]
DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}
Size = Annotated[int, Meta(ge=1, le=2**40)]
Shape = Annotated[list[Size], Meta(min_length=1, max_length=4)]
PartKind = Literal["decoder", "feature decoder", "head", "exit"]
Tap = Annotated[str, Meta(pattern=r"\Ahidden(\.[0-9]{1,4})?\Z")]
Name = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,63}\Z")]
RelativePath = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._/-]{0,199}\Z")]


class BundleError(Error):
    """A bundle that cannot be used; the message is one line that names the cause and the remedy."""


class File(Struct, frozen=True, forbid_unknown_fields=True):
    """Size and digest of one file."""

    bytes: Annotated[int, Meta(ge=0, le=2**50)]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Rope(Struct, frozen=True, forbid_unknown_fields=True):
    """Rotary frequencies that depend on the length of the text (dynamic NTK, longrope).

    dynamic: `base`, `factor`, `original_context` and `dim` give the frequencies by formula.
    longrope: `short` and `long` are complete inverse frequencies, chosen by whether the text is longer than
    `original_context`; `short_scale`, `long_scale` multiply cos and sin.
    """

    kind: Literal["dynamic", "longrope"]
    original_context: Tokens
    dim: Annotated[int, Meta(ge=4, le=2**17, multiple_of=2)]
    base: Scale = 10000.0
    factor: Scale = 1.0
    short: list[Measure] = []
    long: list[Measure] = []
    short_scale: Scale = 1.0
    long_scale: Scale = 1.0


class Weight(Struct, frozen=True, forbid_unknown_fields=True):
    """Where one initializer of a graph stands in the `.data` file beside it, row-major and little-endian."""

    dtype: Dtype
    shape: Annotated[list[Size], Meta(min_length=1, max_length=8)]
    offset: Annotated[int, Meta(ge=0, le=2**50, multiple_of=64)]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """One model of the bundle: a graph that follows the graph contract, and its sizes."""

    graph: RelativePath
    architecture: Label
    layers: Layers
    kv_heads: Width
    head_dim: Width
    hidden: Width
    vocab: Tokens
    """Rows of the logits; may be padded beyond the tokenizer."""
    context: Tokens
    parameters: Positive
    quant: Literal["none", "int8", "int4", "keep"]
    """`keep`: as the blocks of the GGUF file that it was made from."""
    block: Positive | None = None
    window: Positive | None = None
    """The smallest sliding window of any layer."""
    taps: list[Tap] = []
    rope: Rope | None = None
    nodes_per_layer: Measure = 0.0
    """Graph nodes a layer runs after optimisation, for `inspect`."""
    layout: Annotated[int, Meta(ge=1, le=1000)] | None = None
    """Version of the packed weight layout; None where no weight is packed."""
    weights: Annotated[dict[Label, Weight], Meta(max_length=2**15)] = {}
    """Initializers that the runtime may load itself; ONNX Runtime reads the others."""
    caches: dict[Literal["fp16", "int8"], RelativePath] = {}
    """The same graph over the same weights, for a cache of 16 or 8 bits."""
    kind: PartKind = "decoder"
    """A feature decoder is fed with hidden states of the target besides tokens; a head too, and has no cache; an exit
    is the target's first layers, over the target's own cache."""
    reads: list[Tap] = []
    """Taps of the target that it is fed with, side by side."""
    features: Width | None = None
    """Columns of what it is fed with: as many as these taps have together."""
    ahead: Annotated[int, Meta(ge=1, le=64)] = 1
    """Tokens ahead that one row of a head speaks of."""
    adapters: Annotated[dict[Label, Shape], Meta(max_length=4096)] = {}
    """Weights that are inputs of the graph, float32: zero, and without effect, where nobody set them."""

    def graph_for(self, cache: CacheFormat) -> str:
        """Path of the graph that reads a cache of this form. Raises BundleError where there is none."""
        if cache == "fp32":
            return self.graph
        if cache not in self.caches:
            raise BundleError(
                f"the bundle has no graph for a cache of {cache} beside {self.graph}: use --cache fp32 "
                "(in Python: cache='fp32'), or export the model again"
            )
        return self.caches[cache]

    @property
    def adapter_bytes(self) -> int:
        """Bytes of all adapters."""
        return sum(math.prod(shape) * DTYPE_BYTES["float32"] for shape in self.adapters.values())

    @property
    def data(self) -> str:
        """Path of the file that `weights` are in."""
        return f"{self.graph}.data"


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about a bundle but its weights."""

    schema: int
    name: Label
    licence: Label
    profile: Literal["cpu", "portable"]
    """`portable` graphs use operators of stock ONNX Runtime alone in their products."""
    producer: dict[Label, Label]
    """Versions of what made it."""
    target: Part
    drafters: dict[Name, Part] = {}
    acceptance: dict[Label, RoundTokens] = {}
    """Measured tokens per round, by drafter."""
    files: dict[RelativePath, File] = {}


class Phrase(Struct, frozen=True, omit_defaults=True):
    """Tokens in a row; `bias` is added to the last one where the others stand before it, None bans it there."""

    tokens: list[Token]
    bias: float | None = None


class Generation(Struct, frozen=True, omit_defaults=True):
    """`generation.json`: end-of-sequence ids and the sampling defaults of the model's authors."""

    eos_ids: list[Token] = []
    bos_token: str | None = None
    """What a chat template writes for `bos_token`; None follows the tokenizer's own rule."""
    eos_token: str | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    banned: list[Token] = []
    not_before: dict[Token, Token] = {}
    """How many tokens an answer must have before it may go on with one of these."""
    no_repeat_ngram: int = 0
    phrases: list[Phrase] = []


def read_manifest(folder: Path) -> Manifest:
    """Parse and check `manifest.json`. Raises BundleError."""
    path = folder / MANIFEST
    if not folder.is_dir():
        for aside in folder.parent.glob(f".{glob.escape(folder.name)}.old-*"):
            raise BundleError(
                f"no bundle at {folder}: an export was killed while it replaced the one there, which lies at {aside}: "
                "rename it, or export again"
            )
        raise BundleError(
            f"no bundle at {folder}: there is no such folder (make one with 'paceline export MODEL OUT', or fetch one "
            "with 'paceline pull OWNER/REPO')"
        )
    if not path.is_file():
        raise BundleError(
            f"{folder} is no bundle: it has no {MANIFEST} (make one with 'paceline export MODEL OUT')"
        )
    if leads_out(path, folder.resolve()):
        raise BundleError(f"{path} is a link to a place outside the bundle: copy the file into the bundle")
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise BundleError(f"{path} has more than {LARGEST} bytes: fetch or export the bundle again")
        schema = msgspec.json.decode(raw, type=_Schema).schema
        if schema > SCHEMA:
            raise BundleError(
                f"{path}: schema {schema} is newer than this paceline reads (1 to {SCHEMA}): upgrade paceline, "
                "or export the model again with this version"
            )
        if schema < 1:
            raise BundleError(f"{path}: there is no schema {schema}; export the model again")
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: {error}; export the model again") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
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
        if "/" not in part.graph:
            raise BundleError(
                f"{path}: the graph of {what}, {part.graph!r}, is not in a folder of its own; export again"
            )
        _check_rope(part.rope, f"{path}: the rope of {what}")
        _check_weights(part, manifest, f"{path}: {what}")
        _check_caches(part, manifest, f"{path}: {what}")
        _check_kind(part, manifest, f"{path}: {what}")
    if manifest.schema == 1 and manifest.profile != "cpu":
        raise BundleError(f"{path}: schema 1 has no profile {manifest.profile!r}; export the model again")
    if TOKENIZER not in manifest.files:
        raise BundleError(f"{path}: {TOKENIZER} is not among its files; export again")
    if reserved := RESERVED_NAMES.intersection(manifest.drafters):
        raise BundleError(
            f"{path}: a drafter may not be named {sorted(reserved)[0]!r}; export with another name"
        )


def _check_rope(rope: Rope | None, what: str) -> None:
    if rope is not None and rope.kind == "longrope":
        for name, values in (("short", rope.short), ("long", rope.long)):
            if len(values) != rope.dim // 2:
                raise BundleError(
                    f"{what} has {len(values)} {name} frequencies for dim {rope.dim}: it needs "
                    f"{rope.dim // 2}; export again"
                )


def _check_weights(part: Part, manifest: Manifest, what: str) -> None:
    """The layout is one that can be read, and the weights lie in their file one behind the other."""
    if manifest.schema == 1 and (part.layout is not None or part.weights):
        raise BundleError(f"{what} has a layout or weights, which schema 1 does not know; export again")
    if part.layout is not None and part.layout > LAYOUT:
        raise BundleError(
            f"{what} has weights of layout {part.layout}, newer than this paceline reads ({LAYOUT}): upgrade "
            "paceline, or export the model again with this version"
        )
    if not part.weights:
        return
    if part.data not in manifest.files:
        raise BundleError(f"{what} has weights in {part.data!r}, which is not among its files; export again")
    end, before = 0, ""
    for name, weight in sorted(part.weights.items(), key=lambda item: item[1].offset):
        if weight.offset < end:
            raise BundleError(f"{what} has weights that overlap, {before!r} and {name!r}; export again")
        end, before = weight.offset + weight.bytes, name
    if end > (size := manifest.files[part.data].bytes):
        raise BundleError(
            f"{what} has weights up to byte {end} ({before!r}) of {part.data!r}, which has {size}; export again"
        )


def _check_caches(part: Part, manifest: Manifest, what: str) -> None:
    """Other graphs stand beside the first one, where its weights are."""
    if manifest.schema < 3 and part.caches:
        raise BundleError(f"{what} has caches, which schema {manifest.schema} does not know; export again")
    for form, graph in part.caches.items():
        if graph not in manifest.files:
            raise BundleError(
                f"{what} has a graph for {form}, {graph!r}, which is not among its files; export again"
            )
        if PurePosixPath(graph).parent != PurePosixPath(part.graph).parent or graph in (
            part.graph,
            part.data,
        ):
            raise BundleError(
                f"{what} has a graph for {form}, {graph!r}, that is not another one beside {part.graph!r}; export again"
            )


def _check_kind(part: Part, manifest: Manifest, what: str) -> None:
    """What a part is fed with is what the target gives."""
    target, fed = manifest.target, part.kind in ("feature decoder", "head")
    if manifest.schema < 4 and (part.kind != "decoder" or part.reads or part.features or part.adapters):
        raise BundleError(f"{what} is of a kind that schema {manifest.schema} does not know; export again")
    if part.adapter_bytes > MOST_ADAPTERS:
        raise BundleError(
            f"{what} has adapters of {part.adapter_bytes} bytes, more than {MOST_ADAPTERS}; export again"
        )
    if part is target and part.kind != "decoder":
        raise BundleError(f"{what} is a {part.kind}, and only a decoder can be one; export again")
    if missing := sorted(set(part.reads).difference(target.taps)):
        raise BundleError(f"{what} reads {', '.join(missing)}, which the target does not give; export again")
    if fed != bool(part.reads) or (part.features or 0) != len(part.reads) * target.hidden:
        raise BundleError(
            f"{what}, a {part.kind}, reads {len(part.reads)} taps of {target.hidden} columns and says that it is fed "
            f"with {part.features or 0}; export again"
        )
    if part.kind == "exit" and (
        part.layers >= target.layers
        or (part.kv_heads, part.head_dim, part.vocab) != (target.kv_heads, target.head_dim, target.vocab)
    ):
        raise BundleError(
            f"{what} is no exit of the target: its layers are not the target's first; export again"
        )


def as_label(text: str) -> str:
    """What a label may hold of a text: spaces in place of what a terminal obeys, 200 characters at most."""
    return "".join(c if _LABEL.fullmatch(c) else " " for c in text)[:_LABEL_LENGTH]


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json` whole or not at all, readable and stable.

    A link in its place is replaced, so that a hub's blob stays what it is. Raises ValueError for what
    `read_manifest` would refuse.
    """
    made = msgspec.to_builtins(manifest)
    for part in (made["target"], *made["drafters"].values()):  # what its readers know
        for name, since in (("layout", 2), ("weights", 2), ("caches", 3)):
            if manifest.schema < since:
                del part[name]
    text = msgspec.json.format(msgspec.json.encode(made), indent=2)
    try:
        msgspec.json.decode(text, type=Manifest)
    except msgspec.MsgspecError as error:
        raise ValueError(
            f"the manifest would not be readable: {error}; choose another --name or --licence"
        ) from None
    write_atomically(folder / MANIFEST, text + b"\n", private=False)
