"""The manifest of a bundle: what it holds and how to run it. Strict: an unknown key is an error."""

from __future__ import annotations

import glob
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from paceline.runtime.bundle.place import leads_out
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.drafters.words import WORDS
from paceline.runtime.part import DTYPE_BYTES as DTYPE_BYTES
from paceline.runtime.part import SINCE, Label, RelativePath, first_layers, tree_shape, wrong_extras
from paceline.runtime.part import BundleError as BundleError
from paceline.runtime.part import Dtype as Dtype
from paceline.runtime.part import Part as Part
from paceline.runtime.part import PartKind as PartKind
from paceline.runtime.part import Rope as Rope
from paceline.runtime.part import Token as Token
from paceline.runtime.part import Weight as Weight
from paceline.runtime.part import as_label as as_label
from paceline.runtime.split import wrong_split

SCHEMA = 9
"""What is written. Still read: 1, which knew no packed weights, 2, no forms of the cache, 3, no kinds of parts, 4, no
heads that draft, 5, neither skips nor exits nor trees of heads, 6, no draft models of another vocabulary, 7, no
streaming decoders, and nothing that predicts acceptance, 8, neither static graphs nor targets in two halves."""
LAYOUT = 2
"""The newest packed layout that this version reads; version 1 has neither 5 and 6 bits nor minima."""
MANIFEST = "manifest.json"
LARGEST = 1 << 24
"""Bytes of a manifest."""
MOST_ADAPTERS = 1 << 32
"""Bytes of the adapters of a part."""
TOKENIZER, TRAINING = "tokenizer.json", "adapt.onnx"
RESERVED_NAMES = frozenset([*WORDS, "target"])
"""What no draft model may be called: `--drafter` and memory plans have other things by these names."""

# A round yields a token of the target and at most as many more as drafts may be deep.
RoundTokens = Annotated[float, Meta(ge=1, le=1025)]
Name = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,63}\Z")]


class File(Struct, frozen=True, forbid_unknown_fields=True):
    """Size and digest of one file."""

    bytes: Annotated[int, Meta(ge=0, le=2**50)]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


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
        manifest = msgspec.json.decode(_without_ahead(raw) if schema < 5 else raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: {error}; export the model again") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    _check(manifest, path)
    return manifest


class _Schema(Struct):
    schema: int


def _without_ahead(raw: bytes) -> bytes:
    """Every part that was written before schema 5 has this field, which never meant anything."""
    made = msgspec.json.decode(raw)
    drafters = made.get("drafters")
    for part in (made.get("target"), *(drafters.values() if isinstance(drafters, dict) else ())):
        if isinstance(part, dict):
            part.pop("ahead", None)
    return msgspec.json.encode(made)


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
    target, fed = manifest.target, part.kind in ("feature decoder", "head", "exit")
    known = manifest.schema >= 4 or (
        part.kind == "decoder" and not (part.reads or part.features or part.adapters)
    )
    known = known and (manifest.schema >= 5 or not (part.kind == "head" or part.drafts))
    newer = part.kind in ("skip", "exit") or part.without or part.trees or part.ranks or part.product
    known = known and (manifest.schema >= 9 or part.static is None)
    known = known and (manifest.schema >= 8 or part.kind != "streaming decoder")
    if not known or (manifest.schema < 6 and newer):
        raise BundleError(f"{what} is of a kind that schema {manifest.schema} does not know; export again")
    if part.adapter_bytes > MOST_ADAPTERS:
        raise BundleError(
            f"{what} has adapters of {part.adapter_bytes} bytes, more than {MOST_ADAPTERS}; export again"
        )
    if part is target and part.kind != "decoder":
        raise BundleError(f"{what} is a {part.kind}, and only a decoder can be one; export again")
    if missing := sorted(set(part.reads).difference(target.taps)):
        raise BundleError(f"{what} reads {', '.join(missing)}, which the target does not give; export again")
    read = 1 if part.kind == "exit" else len(part.reads)
    if fed != bool(part.reads) or (part.features or 0) != read * target.hidden:
        raise BundleError(
            f"{what}, {_named(part)}, reads {len(part.reads)} taps of {target.hidden} columns and says that it is fed "
            f"with {part.features or 0}; export again"
        )
    if part.kind == "exit":
        _check_exit(part, manifest, what)
    elif part.exits or part.costs:
        raise BundleError(
            f"{what}, {_named(part)}, leaves the target early, as only an exit may; export again"
        )
    if part.kind == "skip":
        _check_skip(part, target, what)
    elif part.without or part.prices is not None:
        raise BundleError(
            f"{what}, {_named(part)}, leaves out blocks or has prices, as only a skip may; export again"
        )
    if wrong := wrong_extras(part, target, manifest.files) or wrong_split(part, target, manifest.files):
        raise BundleError(f"{what}, {_named(part)}, {wrong}; export again")
    _check_beside(part, manifest, what)
    if part.kind == "head":
        _check_head(part, manifest, what)
    elif part.drafts and (part is target or part.kind != "decoder" or part.taps):
        raise BundleError(
            f"{what}, {_named(part)}, has graphs that draft, as only a head and a draft model without taps may; "
            "export again"
        )
    elif part.kind != "exit" and (part.vocabulary or part.trees or not part.layers):
        wrong = "a vocabulary of its own" if part.vocabulary else "trees" if part.trees else "no layers"
        raise BundleError(f"{what}, {_named(part)}, has {wrong}, as only a head may; export again")
    _check_drafts(part, manifest, what)


def _named(part: Part) -> str:
    return f"{'an' if part.kind == 'exit' else 'a'} {part.kind}"


def _check_skip(part: Part, target: Part, what: str) -> None:
    """It is the target in everything but the blocks that it leaves out, and reads the target's weights."""
    if part.data != target.data:
        raise BundleError(f"{what}, a skip, does not stand beside the target's weights; export again")
    if both := sorted({*part.graphs}.intersection(target.graphs)):
        raise BundleError(f"{what}, a skip, has {both[0]!r}, a graph of the target; export again")
    for field in (
        "layers",
        "kv_heads",
        "head_dim",
        "hidden",
        "vocab",
        "context",
        "rope",
        "weights",
        "adapters",
    ):
        if getattr(part, field) != getattr(target, field):
            raise BundleError(f"{what}, a skip, has other {field} than the target; export again")
    blocks = {*part.without}
    if not blocks or part.taps or any(int(block.partition(".")[2]) >= target.layers for block in blocks):
        wrong = "gives taps" if part.taps else "leaves out nothing, or what the target does not have"
        raise BundleError(f"{what}, a skip, {wrong}; export again")


def _check_beside(part: Part, manifest: Manifest, what: str) -> None:
    """A tokenizer is a draft model's, a training step one's with adapters; each lies beside its graph."""
    for name, path, file, fits in (
        ("tokenizer", part.tokenizer, TOKENIZER, part is not manifest.target and part.kind == "decoder"),
        ("training step", part.training, TRAINING, bool(part.adapters)),
    ):
        if path is not None and (not fits or path != str(PurePosixPath(part.graph).with_name(file))):
            raise BundleError(f"{what}, {_named(part)}, has {path!r} for a {name}; export again")
        if path is not None and path not in manifest.files:
            wrong = f"has its {name} in {path!r}, which is not among its files"
            raise BundleError(f"{what} {wrong}; export again")


def _check_head(part: Part, manifest: Manifest, what: str) -> None:
    """It drafts, with graphs and a vocabulary that are there."""
    if not part.drafts:
        raise BundleError(f"{what}, a head, has no graph that drafts; export again")
    _check_reading(part, manifest, what)


def _check_exit(part: Part, manifest: Manifest, what: str) -> None:
    """It leaves the target after layers that it reads, with graphs beside the target's weights."""
    target = manifest.target
    wrong = ""
    if not part.exits or part.reads != [f"hidden.{layer}" for layer in sorted(part.exits)]:
        wrong = "does not read what the layers say after which it leaves"
    elif part.layers and len(part.exits) > 1:
        wrong = "leaves after several layers, and has attention of its own for one"
    elif max(part.exits) >= target.layers - 1:
        wrong = f"leaves after layer {max(part.exits)} of {target.layers}, where nothing is left out"
    elif part.costs.keys() != part.exits.keys():
        wrong = "does not say what leaving after each layer costs"
    elif part.trees:
        wrong = "has trees, as only a head may"
    elif part.borrows and (part.data, part.weights) != (target.data, target.weights):
        wrong = "has other weights than the target"
    if wrong:
        raise BundleError(f"{what}, an exit, {wrong}; export again")
    _check_reading(part, manifest, what)
    taken = {*part.graphs, *target.graphs}
    for layer in part.exits:
        early = first_layers(target, part, layer)
        if early.data != target.data:
            raise BundleError(f"{what}, an exit, does not stand beside the target's weights; export again")
        for path in early.graphs:
            if path not in manifest.files:
                raise BundleError(f"{what} runs {path!r}, which is not among its files; export again")
            if path in taken:
                raise BundleError(f"{what}, an exit, has {path!r} twice; export again")
            taken.add(path)


def _check_reading(part: Part, manifest: Manifest, what: str) -> None:
    """Its vocabulary is there, and it is no more than a part that reads."""
    if part.taps or part.rope is not None:
        wrong = "gives taps" if part.taps else "has rotary frequencies that depend on the length of the text"
        raise BundleError(f"{what}, {_named(part)}, {wrong}, as only a decoder may; export again")
    if part.vocab > manifest.target.vocab:
        raise BundleError(
            f"{what}, {_named(part)}, knows {part.vocab} tokens where the target has {manifest.target.vocab}; "
            "export again"
        )
    if part.vocabulary is not None:
        if (file := manifest.files.get(part.vocabulary)) is None:
            raise BundleError(
                f"{what} has its vocabulary in {part.vocabulary!r}, which is not among its files; export again"
            )
        if file.bytes != 4 * part.vocab:
            raise BundleError(
                f"{what} has a vocabulary of {file.bytes} bytes in {part.vocabulary!r}, where {part.vocab} tokens take "
                f"{4 * part.vocab}; export again"
            )


def _check_drafts(part: Part, manifest: Manifest, what: str) -> None:
    """Graphs that draft stand beside the one that reads, one for each form of the cache."""
    place, seen = PurePosixPath(part.graph).parent, {part.data, *part.caches.values(), part.graph}
    if part.trees and max(tree_shape(name)[0] for name in part.trees) > max(part.drafts):
        raise BundleError(f"{what}, a head, drafts trees that are deeper than its chains; export again")
    if part.trees and max(tree_shape(name)[1] for name in part.trees) > part.vocab:
        raise BundleError(
            f"{what}, a head that knows {part.vocab} tokens, drafts trees that are wider; export again"
        )
    for form in ("fp32", *(part.caches if part.layers else ())):
        for path in part.graphs_for(form)[1:]:
            if path not in manifest.files:
                raise BundleError(f"{what} drafts with {path!r}, which is not among its files; export again")
            if PurePosixPath(path).parent != place or path in seen:
                raise BundleError(
                    f"{what} drafts with {path!r}, which is not another graph beside {part.graph!r}; export again"
                )
            seen.add(path)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json` whole or not at all, readable and stable.

    A link in its place is replaced, so that a hub's blob stays what it is. Raises ValueError for what
    `read_manifest` would refuse.
    """
    made = msgspec.to_builtins(manifest)
    for part in (made["target"], *made["drafters"].values()):  # what its readers know
        for name, since in SINCE.items():
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
