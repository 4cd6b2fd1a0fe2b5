"""The storyteller left early: parts of a bundle, and drafters beside a target of their own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import msgspec
import numpy as np
from beside_target import BesideTarget
from small_heads import VOCABULARY, Tensors, small_config, small_tensors, write_small_head

from paceline.embedded import embedded_bundle
from paceline.export.enlarging import take_files
from paceline.export.heads.adding import add_heads
from paceline.export.heads.table import target_head
from paceline.export.skips.leaving import add_exits
from paceline.memory.cache import CacheFormat
from paceline.runtime.bundle.bundle import Bundle, open_bundle
from paceline.runtime.drafters.exits import ExitDrafter, LayerDrafter
from paceline.runtime.manifest import Part, read_manifest, write_manifest
from paceline.runtime.model.device import find_device
from paceline.runtime.model.exits import Exits
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.skipping import Skipping
from paceline.runtime.part import first_layers

LAYERS = (1, 3, 6)
"""After which the storyteller is left."""


def adapter_tensors(folder: Path, part: Part, config: object, known: int) -> Tensors:
    """Of a block that hardly looks back, before the target's LM head: as if the target was left as it is."""
    tensors = small_tensors(config)  # type: ignore[arg-type]
    tensors["layer.o.weight"] *= 0.1
    tensors["final_norm.weight"] = np.full(part.hidden, 3.0, np.float32)
    tensors[VOCABULARY] = np.arange(known, dtype=np.int32)
    tensors["head.weight"] = target_head(folder, part)[:known]
    return tensors


def _made(source: Path, layers: Sequence[int], adapted: int) -> Bundle:
    """A bundle left after these layers (`del`), and after one through a block (`roo`), from another one."""
    place = Path(mkdtemp(prefix="exits-"))
    add_exits(source, {"del": layers}, place / "del")
    target = read_manifest(place / "del").target
    config = small_config(target, "kangaroo", taps=[f"hidden.{adapted}"], vocab=target.vocab // 2, depth=6)
    tensors = adapter_tensors(place / "del", target, config, config.vocab)
    head = write_small_head(place / "head", config, tensors)
    add_heads(place / "del", {"roo": str(head)}, place / "both")
    return open_bundle(place / "both")


@cache
def exit_bundle() -> Bundle:
    """The storyteller with such parts; a link made elsewhere to a file of it would be a change of that file."""
    return _made(embedded_bundle(), LAYERS, 2)


@cache
def _small() -> Bundle:
    """The same of the storyteller's draft model, which takes less time: a bundle of it alone, left after layer 0."""
    source, folder = embedded_bundle(), Path(mkdtemp(prefix="small-"))
    manifest = read_manifest(source)
    small = manifest.drafters["small"]
    files = {name: file for name, file in manifest.files.items() if not name.startswith("target/")}
    alone = msgspec.structs.replace(manifest, target=small, drafters={}, files=files, acceptance={})
    take_files(source, alone, folder)
    write_manifest(alone, folder)
    return _made(folder, (0,), 0)


def beside_a_target(
    name: str, context: int = 512, form: CacheFormat = "fp32", small: bool = False, own: int = 512
) -> tuple[Model, Exits]:
    """A target with a cache of its own, and what leaves it early. own: rows of the cache of the part's own."""
    bundle = _small() if small else exit_bundle()
    manifest = bundle.manifest
    target, part = manifest.target, manifest.drafters[name]

    def graph(of: Part) -> Graph:
        key = small, of.graph_for(form)
        if key not in _graphs:
            _graphs[key] = Graph(bundle.path(key[1]), find_device("cpu"), 1, of)
        return _graphs[key]

    model = Model(graph(target), target, context, 24, 64, cache=form)
    reader = Model(graph(part), part, own, 4, 64, cache=form)
    first = {layer: first_layers(target, part, layer) for layer in part.exits}
    early = {layer: Skipping(graph(layers), layers, model) for layer, layers in first.items()}
    return model, Exits(reader, bundle.draft_ids(part), early)


_graphs: dict[tuple[bool, str], Graph] = {}


def leaving_drafter(part: str, vocab: int, own: int = 512) -> BesideTarget:
    """Leaves a small target of its own early. own: rows of the cache of the part's own."""
    target, exits = beside_a_target(part, small=True, own=own)
    exits.costs = dict.fromkeys(exits.costs, 0.0)  # what this target says is hardly ever right
    features = target.keep_taps(exits.reader.part.reads)
    return BesideTarget(
        target, ExitDrafter(exits, features, vocab) if exits.attends else LayerDrafter(exits, vocab)
    )
