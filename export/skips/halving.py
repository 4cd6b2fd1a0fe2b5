"""A finished bundle gets its target in two graphs: the first says early what may follow, the rest goes on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import msgspec
import onnx_ir as ir
from tokenizers import Tokenizer

from paceline.export.atomic import new_folder
from paceline.export.caches import write_cached_graphs
from paceline.export.check import part_logits
from paceline.export.enlarging import finish, new_files, open_for, take_files, told
from paceline.export.errors import ExportError
from paceline.export.passes import Floats
from paceline.export.report import Progress, Report, SplitReport, Stages, silent
from paceline.export.skips.blocks import leave_out, prune
from paceline.export.skips.early import bytes_above, check_layers, check_shared, feed, output_of, stream_of
from paceline.export.skips.exit_graph import copied_bytes, say_early
from paceline.export.skips.trained import Exit, check_exit
from paceline.export.tapping import add_taps, check_unadapted, same_logits
from paceline.export.tokens import token_ids
from paceline.export.trial import TEXT
from paceline.memory.cache import CacheFormat
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.contracts import Early
from paceline.runtime.manifest import TOKENIZER, Part
from paceline.runtime.model.device import find_device
from paceline.runtime.model.first_half import FirstHalf
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.part import Split
from paceline.runtime.split import IDS, halves
from paceline.runtime.tree import TokenTree

NAMED = 32
"""Tokens that the first half names for each row: with shared noise the one that wins is often not a likely one."""
_SHOWN = 8
"""Of these the ones whose recall is told."""


def add_split(
    bundle: Path, wish: Exit | int, out: Path, *, force: bool = False, progress: Progress | None = None
) -> Report:
    """Split the target of a finished bundle behind a layer: that of a trained exit, or one that is named, whose states
    go through the model's own norm and LM head as they are. It appears at `out`, of links to the same files.

    Raises ExportError for a model that cannot be split there, BundleError for a bundle that is damaged, ValueError for
    a wrong order, OSError as the disk does.
    """
    started = time.monotonic()
    old = open_for(bundle, (), out, force).manifest
    if old.target.split is not None:
        raise ValueError(f"{bundle} has a split already: take the bundle that it was made of")
    check_unadapted(old.target, bundle)
    check_shared(old.target, bundle)
    layer = wish if isinstance(wish, int) else wish.config.layer
    check_layers([layer], old.target)
    if isinstance(wish, Exit):
        check_exit(wish, old)
    stages = Stages("split", progress or silent)
    with new_folder(out, force) as work:
        take_files(bundle, old, work)
        ids = token_ids(Tokenizer.from_file(str(work / TOKENIZER)), TEXT)
        target = add_taps(work, old.target, [f"hidden.{layer}"], ids)
        with stages.time("write"):
            target, share, copied = write_halves(
                work, target, layer, wish if isinstance(wish, Exit) else None
            )
        with stages.time("check"):
            right = _check(work, target, ids)
        files = new_files(work, [work / Path(target.graph).parent])
        manifest = finish(old, work, files, target=target)
    own = {path for half in halves(target) for path in (*half.graphs, *half.stores)} - {target.data}
    added = sum(manifest.files[path].bytes for path in own)
    report = SplitReport(target, added, copied, share, right, stages.seconds)
    return dataclasses.replace(told(out, old, manifest, started), split=report)


def write_halves(work: Path, target: Part, layer: int, trained: Exit | None) -> tuple[Part, float, int]:
    """Write both graphs, for every form of the cache; returns the target with them, of the bytes of a pass the share
    that the first one reads, and bytes of the LM head that it has of its own."""
    place, vocab = PurePosixPath(target.graph), None if trained is None else trained.config.vocab
    first_name = str(place.with_name("first.onnx"))
    split = Split(
        layer=layer,
        first=first_name,
        rest=str(place.with_name("rest.onnx")),
        named=min(NAMED, target.vocab if vocab is None else vocab),
        recall={} if trained is None else trained.config.recall,
        vocab=vocab,
        data=None if trained is None else f"{first_name}.data",
    )
    made = msgspec.structs.replace(target, split=split)
    graph = ir.load(work / target.graph)
    first = _first(graph, made, trained, work)
    for path, twin in ((split.first, first), (split.rest, _rest(graph, made))):
        write_atomically(work / path, ir.to_proto(twin).SerializeToString(), private=False)
        write_cached_graphs(twin, work / path)
    share = bytes_above(output_of(first, IDS)) / bytes_above(output_of(graph, "logits"))
    return made, share, copied_bytes(first)


def _first(graph: ir.Model, target: Part, trained: Exit | None, work: Path) -> ir.Model:
    early, _ = halves(target)
    twin = leave_out(graph, early.without, target.layers, early.taps)
    say_early(twin, target, trained, work)
    return twin


def _rest(graph: ir.Model, target: Part) -> ir.Model:
    assert target.split is not None
    first, _ = halves(target)
    twin = graph.clone()
    state, _ = stream_of(twin, f"hidden.{target.split.layer}")
    features = feed(twin.graph, state, target.hidden)
    left = {f"new_{side}.{layer}" for layer in first.attending for side in "kv"} | {*first.taps}
    twin.graph.outputs[:] = [v for v in twin.graph.outputs if v.name not in left]
    prune(twin.graph)
    twin.graph.inputs.insert(1, features)
    return twin


def _check(work: Path, target: Part, ids: Sequence[int]) -> list[float]:
    """By rank, how often the target's choice on a text is among what the first half named.

    Raises ExportError where both halves do not say what the whole says.
    """
    rows = min(len(ids), target.context - 1)
    tokens = [min(number, target.vocab - 1) for number in ids[:rows]]
    forms: tuple[CacheFormat, ...] = ("fp32", *target.caches)
    for form in forms:
        whole = part_logits(work, msgspec.structs.replace(target, split=None), rows, form)(tokens)
        both, early = _said(work, target, tokens, form)
        if not same_logits(whole, both):
            raise ExportError(
                f"{work.name}: in two graphs this model says something else over a cache of {form}: nothing was written"
            )
    hits = (early.ids == whole.argmax(axis=1)[:, None]).cumsum(axis=1).mean(axis=0)
    return [round(float(hit), 4) for hit in hits[:_SHOWN]]


def _said(work: Path, target: Part, tokens: Sequence[int], form: CacheFormat) -> tuple[Floats, Early]:
    """Logits of a text from both halves, and what the first one says."""
    first, rest = halves(target)
    cpu, heard = find_device("cpu"), list[Early]()
    early = FirstHalf(Graph(work / first.graph_for(form), cpu, 0, first), target, heard.append)
    graph, count = Graph(work / rest.graph_for(form), cpu, 0, rest), len(tokens)
    model = Model(graph, target, count, count, count, cache=form, first=early)
    model.prepare(count)
    return model.score(TokenTree.chain(tokens)).logits.copy(), heard[0]
