"""The storyteller with some of its blocks left out: a part of a bundle, and a drafter beside a target of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import msgspec
import onnx_ir as ir
from beside_target import BesideTarget

from paceline.embedded import embedded_bundle
from paceline.export.report import files_in
from paceline.export.skips.adding import part_without, write_skip
from paceline.export.skips.blocks import blocks_of, leave_out
from paceline.memory.cache import CacheFormat
from paceline.runtime.bundle.bundle import Bundle, open_bundle
from paceline.runtime.drafters.chain import ChainModel
from paceline.runtime.manifest import SCHEMA, Part, read_manifest, write_manifest
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.skipping import Skipping

WITHOUT = ("mlp.1", "mlp.2", "attention.5", "attention.6")
"""Blocks that the storyteller can do without: some nine in ten of its tokens stay the same."""


def add_skip(folder: Path, without: Sequence[str] = WITHOUT, name: str = "swift") -> Part:
    """Give the bundle in a folder a part that leaves out these blocks of its target."""
    manifest = read_manifest(folder)
    target = manifest.target
    graph = ir.load(folder / target.graph)
    blocks = blocks_of(graph, target.layers)
    part = part_without(name, target, [block for block in blocks if block.name in without])
    part = write_skip(graph, part, folder)
    files = {path: file for path, file in files_in(folder, folder).items() if path in part.graphs}
    made = msgspec.structs.replace(
        manifest,
        schema=SCHEMA,
        drafters={**manifest.drafters, name: part},
        files=dict(sorted({**manifest.files, **files}.items())),
    )
    write_manifest(made, folder)
    return part


@cache
def skip_bundle() -> Bundle:
    """The storyteller with such a part; a link made elsewhere to a file of it would be a change of that file."""
    folder = Path(mkdtemp(prefix="skips-"))
    shutil.copytree(embedded_bundle(), folder, dirs_exist_ok=True)
    add_skip(folder)
    return open_bundle(folder)


@cache
def _graphs(form: CacheFormat) -> tuple[Graph, Graph]:
    bundle = skip_bundle()
    parts = bundle.manifest.target, bundle.manifest.drafters["swift"]
    target, skip = (Graph(bundle.path(p.graph_for(form)), find_device("cpu"), 1, p) for p in parts)
    return target, skip


def beside_a_target(context: int = 512, form: CacheFormat = "fp32") -> tuple[Model, Skipping]:
    """A target with a cache of its own, and what drafts over it."""
    graph, skips = _graphs(form)
    bundle = skip_bundle()
    target = Model(graph, bundle.manifest.target, context, 8, 64, cache=form)
    return target, Skipping(skips, bundle.manifest.drafters["swift"], target)


@cache
def _small() -> tuple[tuple[Graph, Part], tuple[Graph, Part]]:
    """The same of the storyteller's draft model, which takes less time."""
    bundle = open_bundle(embedded_bundle())
    target = next(iter(bundle.manifest.drafters.values()))
    place = bundle.path(target.graph)
    model = ir.load(place)
    block = next(block for block in blocks_of(model, target.layers) if block.name == "mlp.0")
    part = part_without("swift", target, [block])
    raw = ir.to_proto(leave_out(model, part.without, target.layers)).SerializeToString()
    device = find_device("cpu")
    skips = Graph(place.with_name("skip.onnx"), device, 1, part, raw=raw)
    return (Graph(place, device, 1, target), target), (skips, part)


def skipping_drafter(vocab: int, context: int = 512) -> BesideTarget:
    """Leaves out a block of a small target of its own."""
    (graph, part), skip = _small()
    target = Model(graph, part, context, 8, 64)
    return BesideTarget(target, ChainModel(Skipping(*skip, target), vocab, "skip"))
