"""From a trained head to a part of a bundle: graphs over the same weights, its vocabulary, what the manifest says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from paceline.export.caches import Narrow, write_cached_graphs
from paceline.export.heads.config import HeadQuant
from paceline.export.heads.head import Head
from paceline.export.heads.layer import FREQUENCIES, layer_frequencies
from paceline.export.heads.methods import METHODS
from paceline.export.heads.stored import BLOCK, Stored
from paceline.export.heads.writer import EMBED, FUSE, HEAD, IDS, ROWS, HeadWriter
from paceline.export.skips.early import Early
from paceline.export.storage import layout_of
from paceline.export.weights import GRAPH, draft_name, write_model
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.manifest import Part, Weight

VOCABULARY = "vocabulary.u32"


@dataclass(frozen=True, slots=True)
class Written:
    """A head's files in their folder. graphs: by file name, for a cache of fp32. caches: of the graph that reads."""

    graphs: dict[str, ir.Model]
    weights: dict[str, Weight]
    caches: dict[Narrow, str]
    bytes: int


def tree_name(depth: int, width: int) -> str:
    """The file of the graph that drafts a tree."""
    return f"tree.{depth}x{width}.onnx"


def stored_weights(title: str, head: Head, quant: HeadQuant, done: Callable[[float], None]) -> Stored:
    """Round and pack the weights of a head, each once. Raises ExportError where rounding leaves too little of one."""
    config, way, stored = head.config, METHODS[head.config.method], Stored()
    joins = {FUSE: ("fc.weight",), EMBED: ("embed.weight",), HEAD: ("head.weight",), **way.joins(head)}
    joins = {name: parts for name, parts in joins.items() if parts[0] in head.weights}
    for number, (name, parts) in enumerate(joins.items(), 1):
        # Single columns of hidden states are huge: 8 bits would leave nothing of the others of their block.
        held = {part: head.weights[part] for part in parts}
        stored.matrix(title, name, held, quant, exact=name == FUSE)
        done(number / len(joins))
    for name, values in head.weights.items():
        if values.ndim == 1:
            stored.vector(name, values)
    if way.layers(config):
        stored.tensors[FREQUENCIES] = ir.tensor(layer_frequencies(config), name=FREQUENCIES)
    if not config.whole and way.draft is not None:
        stored.whole(IDS, head.vocabulary)
        if way.embeds and not head.style.whole_table:
            rows = np.full(config.target_vocab, config.vocab)
            rows[head.vocabulary] = np.arange(config.vocab)
            stored.whole(ROWS, rows)
    return stored


def write_head(head: Head, stored: Stored, folder: Path, done: Callable[[float], None]) -> Written:
    """Write the graphs of a head, their one file of weights and its vocabulary."""
    config, way = head.config, METHODS[head.config.method]
    graph = way.read(HeadWriter(config, head.style, stored))
    weights, _ = write_model(graph, folder, done)
    for name in stored.tensors:  # from here on as they lie in the file
        tensor = graph.graph.initializers[name].const_value
        assert tensor is not None
        stored.tensors[name] = tensor
    graphs = {GRAPH: graph}
    if way.draft is not None:
        for depth in config.depths:
            graphs[draft_name(depth)] = way.draft(HeadWriter(config, head.style, stored), depth)
    if way.tree is not None:
        for depth, width in config.trees:
            made = way.tree(HeadWriter(config, head.style, stored), depth, width)
            graphs[tree_name(depth, width)] = made
    caches: dict[Narrow, str] = {}
    for name, model in graphs.items():
        if name != GRAPH:
            write_atomically(folder / name, ir.to_proto(model).SerializeToString(), private=False)
        if way.layers(config):
            found = write_cached_graphs(model, folder / name)
            caches = found if name == GRAPH else caches
    if not config.whole:
        write_atomically(folder / VOCABULARY, head.vocabulary.astype("<u4").tobytes(), private=False)
    return Written(graphs, weights, caches, sum(file.stat().st_size for file in folder.iterdir()))


def part_of_head(
    place: str, head: Head, written: Written, quant: HeadQuant, context: int, early: Early | None = None
) -> Part:
    """What the manifest says of a head in the folder `place` of a bundle. early: the target's layers before it, where
    those draft.
    """
    config, way = head.config, METHODS[head.config.method]
    trees = config.trees if way.tree is not None else []
    return Part(
        graph=f"{place}/{GRAPH}",
        architecture=config.method,
        layers=way.layers(config),
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        hidden=config.hidden,
        vocab=config.vocab,
        context=context,
        parameters=head.parameters,
        quant=quant,
        block=None if quant == "none" else BLOCK,
        layout=max(layout for model in written.graphs.values() if (layout := layout_of(model.graph))),
        weights=written.weights,
        caches={form: f"{place}/{file}" for form, file in written.caches.items()},
        kind="head" if early is None else "exit",
        reads=list(config.taps),
        features=len(config.taps) * config.hidden,
        vocabulary=None if config.whole else f"{place}/{VOCABULARY}",
        drafts={depth: f"{place}/{draft_name(depth)}" for depth in config.depths},
        trees={f"{depth}x{width}": f"{place}/{tree_name(depth, width)}" for depth, width in trees},
        ranks=list(config.ranks),
        product=way.product,
        exits={} if early is None else dict(early.graphs),
        costs={} if early is None else early.costs(sum(weight.bytes for weight in written.weights.values())),
        method=config.method,
        accepted=list(config.acceptance),
    )
