"""A finished bundle gets its target in two graphs: the first says early what may follow, the rest goes on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
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
from paceline.export.skips.early import bytes_above, check_layers, check_shared, feed, output_of
from paceline.export.skips.trained import EPSILON, Exit, check_exit
from paceline.export.tapping import add_taps, check_unadapted, same_logits
from paceline.export.tokens import token_ids
from paceline.export.trial import TEXT
from paceline.memory.cache import CacheFormat
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.contracts import Early
from paceline.runtime.manifest import TOKENIZER, Part
from paceline.runtime.model.device import find_device
from paceline.runtime.model.first_half import CHANCES, IDS, FirstHalf
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.part import Split
from paceline.runtime.split import halves
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
            target, share = write_halves(work, target, layer, wish if isinstance(wish, Exit) else None)
        with stages.time("check"):
            right = _check(work, target, ids)
        files = new_files(work, [work / Path(target.graph).parent])
        manifest = finish(old, work, files, target=target)
    added = sum(manifest.files[path].bytes for half in halves(target) for path in half.graphs)
    report = SplitReport(target, added, share, right, stages.seconds)
    return dataclasses.replace(told(out, manifest, started), split=report)


def write_halves(work: Path, target: Part, layer: int, trained: Exit | None) -> tuple[Part, float]:
    """Write both graphs, for every form of the cache; returns the target with them, and of the bytes of a pass the
    share that the first one reads."""
    place, named = PurePosixPath(target.graph), min(NAMED, target.vocab)
    split = Split(
        layer=layer,
        first=str(place.with_name("first.onnx")),
        rest=str(place.with_name("rest.onnx")),
        named=named,
        recall={} if trained is None else trained.config.recall,
    )
    made = msgspec.structs.replace(target, split=split)
    graph = ir.load(work / target.graph)
    first = _first(graph, made, trained)
    for path, twin in ((split.first, first), (split.rest, _rest(graph, made))):
        write_atomically(work / path, ir.to_proto(twin).SerializeToString(), private=False)
        write_cached_graphs(twin, work / path)
    share = bytes_above(output_of(first, IDS)) / bytes_above(output_of(graph, "logits"))
    return made, share


def _state(model: ir.Model, tap: str) -> tuple[ir.Value, ir.Node | None]:
    """The stream that a tap shows, and the node that only shows it."""
    shown = output_of(model, tap)
    maker = shown.producer()
    if maker is not None and maker.op_type == "Squeeze" and not shown.uses():
        stream = maker.inputs[0]
        assert stream is not None
        return stream, maker
    return shown, None


def _first(graph: ir.Model, target: Part, trained: Exit | None) -> ir.Model:
    assert target.split is not None
    early, _ = halves(target)
    twin = leave_out(graph, early.without, target.layers, early.taps)
    state, shows = _state(twin, f"hidden.{target.split.layer}")
    if trained is not None:
        _adapt(twin.graph, state, shows, trained)
    logits = output_of(twin, "logits")
    law = ir.node("LogSoftmax", [logits], {"axis": -1})
    count = _constant(twin.graph, "early.count", np.array([target.split.named], np.int64))
    best = ir.node("TopK", [law.outputs[0], count], {"axis": -1}, num_outputs=2)
    for node in (law, best):
        twin.graph.append(node)
    chances, ids = best.outputs
    shape = ir.Shape(["R", target.split.named])
    chances.name, chances.dtype, chances.shape = CHANCES, ir.DataType.FLOAT, shape
    ids.name, ids.dtype, ids.shape = IDS, ir.DataType.INT64, shape
    logits.name = "early.logits"
    twin.graph.outputs[:] = [ids, chances, *(v for v in twin.graph.outputs if v is not logits)]
    return twin


def _adapt(graph: ir.Graph, state: ir.Value, shows: ir.Node | None, trained: Exit) -> None:
    """Let what says tokens read what the exit makes of a state."""
    maker, readers = state.producer(), [use.node for use in state.uses() if use.node is not shows]
    assert maker is not None
    constants: dict[str, np.ndarray] = {
        **{name: trained.weights[name] for name in ("down", "up", "bias")},
        "two": np.array(2, np.float32),
        "half": np.array(-0.5, np.float32),
        "epsilon": np.array(EPSILON, np.float32),
        "last": np.array([-1], np.int64),
    }
    known = {name: _constant(graph, f"early.{name}", value) for name, value in constants.items()}
    nodes: list[ir.Node] = []

    def add(operator: str, *inputs: ir.Value) -> ir.Value:
        nodes.append(ir.node(operator, list(inputs)))
        nodes[-1].outputs[0].dtype = ir.DataType.FLOAT
        return nodes[-1].outputs[0]

    mean = add("ReduceMean", add("Pow", state, known["two"]), known["last"])
    sized = add("Mul", state, add("Pow", add("Add", mean, known["epsilon"]), known["half"]))
    moved = add("MatMul", add("MatMul", sized, known["down"]), known["up"])
    whole = add("Add", sized, add("Add", moved, known["bias"]))
    whole.shape = state.shape
    graph.insert_after(maker, nodes)
    for node in readers:
        for at, value in enumerate(node.inputs):
            if value is state:
                node.replace_input_with(at, whole)


def _constant(graph: ir.Graph, name: str, value: np.ndarray) -> ir.Value:
    tensor = ir.tensor(value, name=name)
    made = ir.val(name, tensor.dtype, ir.Shape(list(value.shape)), const_value=tensor)
    graph.register_initializer(made)
    return made


def _rest(graph: ir.Model, target: Part) -> ir.Model:
    assert target.split is not None
    first, _ = halves(target)
    twin = graph.clone()
    state, _ = _state(twin, f"hidden.{target.split.layer}")
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
