"""From a checkpoint to a bundle: load, capture, shrink, write, check; only then does the folder appear."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from paceline.export.adaptation.adding import adapted
from paceline.export.atomic import check_free, new_folder
from paceline.export.candidate import Candidate, examine
from paceline.export.capture import capture
from paceline.export.check import check_graph, part_logits
from paceline.export.errors import ExportError
from paceline.export.exact_graph import write_exact_graph
from paceline.export.facts import facts
from paceline.export.finishing import finish, with_static, write_graphs
from paceline.export.gguf.text import write_gguf_text
from paceline.export.heads.adding import export_heads, notes_on, read_heads, taps_of
from paceline.export.heads.config import check_target
from paceline.export.measuring import Measuring
from paceline.export.order import Order, check_order
from paceline.export.passes import simplify
from paceline.export.report import (
    PartReport,
    Progress,
    Report,
    Stages,
    manifest_of,
    silent,
)
from paceline.export.shrink import in_floats, keeps_inputs, mixed, profile_of, quant_of, shrink
from paceline.export.source import Loaded, load_model
from paceline.export.static.check import check_static
from paceline.export.stored import StoredWeights
from paceline.export.streams import check_streams, streams_of, with_streams
from paceline.export.text_check import open_text, tokens_beyond
from paceline.export.text_rounding import calibrate_model, exact_inputs, mix
from paceline.export.tokenizer_files import write_text_files
from paceline.export.tokens import token_ids
from paceline.export.torch_model import forget_weights, logits_of, put_back
from paceline.export.trial import TEXT, answer, make_trial
from paceline.export.vocabularies import OwnVocabulary, own_vocabulary
from paceline.export.weights import GRAPH
from paceline.runtime.manifest import write_manifest
from paceline.runtime.ops.packed_matmul import EMBEDDING

_MADE_BY = ("paceline", "torch", "transformers", "onnx", "onnxruntime")


def export_bundle(
    order: Order,
    out: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Report:
    """Export a model, and its draft models, to the folder `out`, which appears when everything was checked.

    What is here is looked at before anything is fetched, and draft models are fetched before the larger target.
    `warn` takes a sentence, before something that takes long for little. Raises ExportError for a model that cannot
    be exported or a failed check, ValueError for a wrong order.
    """
    started = time.monotonic()
    check_order(order)
    check_free(out, force)
    show = progress or silent
    with new_folder(out, force) as work:
        part_stages = {name: Stages(name, show) for name in ("target", *order.drafters)}
        with part_stages["target"].time("find files"):
            given = _examine(order)
            heads = read_heads(order.heads, *_sizes(given["target"].config)) if order.heads else {}
            order = replace(order, taps=taps_of(heads, order.taps))
        with given["target"].named():
            tokenizer, notes = text_writer(given["target"])(work)
        text, doubts = open_text(work)
        notes += doubts
        own = {}
        for name in order.drafters:
            with given[name].named():
                own[name] = own_vocabulary(name, text_writer(given[name]), tokenizer, work)
        parts = {}
        for name, stages in part_stages.items():
            with stages.time("load"):
                loaded = load_model(given[name])
                if name == "target":
                    titles = order.name or loaded.name, order.licence or loaded.licence
                    known = facts(loaded)
                    notes += tokens_beyond(work, text, known.vocab, TEXT)
                    for head, read in heads.items():
                        check_target(head, read.config, known.hidden, known.vocab)
            notes += [f"{name}: {note}" for note in loaded.notes]
            parts[name] = export_part(name, loaded, tokenizer, order, work, stages, warn, own.get(name))
            check_streams(name, parts[name].part, parts["target"].part, order.adapt)
            if order.adapt is not None and (name != "target" or not order.drafters):
                reads = tokenizer if (theirs := own.get(name)) is None else theirs.tokenizer
                parts[name] = adapted(name, parts[name], work, order.adapt, reads, stages)
            notes += [f"{name}: {note}" for note in parts[name].notes]
            del loaded
            gc.collect()
        drafts = export_heads(heads, order.head_quant, work, parts["target"].part, show)
        manifest = manifest_of(titles, {**parts, **drafts}, profile_of(order), work, _MADE_BY)
        notes += notes_on(heads, manifest)
        write_manifest(manifest, work)
    size = sum(f.bytes for f in manifest.files.values())
    return Report(out, manifest, parts, size, time.monotonic() - started, tuple(notes), drafts)


def _examine(order: Order) -> dict[str, Candidate]:
    """Every part's checkpoint: those here first, then what is fetched, the target last. Raises ExportError."""
    wanted: dict[str, tuple[str, str | None, str | None]] = {
        name: (source, None, None) for name, source in order.drafters.items()
    }
    wanted["target"] = order.source, order.revision, order.file
    by_place = sorted(wanted, key=lambda name: not Path(wanted[name][0]).exists())
    given = {name: examine(*wanted[name]) for name in by_place}
    if order.quant == "keep" and given["target"].gguf is None:
        raise ExportError(f"--quant keep is for GGUF files: {order.source} is none, use none, int8 or int4")
    return given


def text_writer(given: Candidate) -> Callable[[Path], tuple[Tokenizer, list[str]]]:
    """What writes the text side of a checkpoint into a folder, and gives its tokenizer and what was left out."""
    if given.gguf is not None:
        return partial(write_gguf_text, given.gguf)
    return partial(write_text_files, given.folder)


def export_part(
    name: str,
    loaded: Loaded,
    tokenizer: Tokenizer,
    order: Order,
    work: Path,
    stages: Stages,
    warn: Callable[[str], None] | None,
    own: OwnVocabulary | None = None,
) -> PartReport:
    """Export one model into its folder. Torch answers first, so that its weights can go before the check.

    own: its tokenizer, if it is not the target's.
    """
    tokenizer, order = tokenizer if own is None else own.tokenizer, order.of(name)
    known, reference = facts(loaded), partial(logits_of, loaded)
    rounded_in = quant_of(order, loaded) != "none"
    with stages.time("reference") as done:
        lengths = [1] if known.rope is None else [1, known.rope.original_context + 1]
        text = with_streams(token_ids(tokenizer, TEXT), known.vocab, streams_of(loaded.config))
        trials = [make_trial(text, known.vocab, known.context, within) for within in lengths]
        answers = [] if rounded_in else [answer(reference, trial) for trial in trials]
        measuring = Measuring(order, tokenizer, known.context, rounded_in)
        before = measuring.of(lambda tokens: reference(tokens, len(tokens)), done)
    with stages.time("calibrate") as done:
        rounded = calibrate_model(name, loaded, tokenizer, order, done, warn)
        recipe, choose = mix(loaded, tokenizer, order, done) if mixed(order) else (None, None)
        if keeps_inputs(order):
            choose = exact_inputs(loaded, tokenizer)
    with stages.time("make graph"):
        graph = capture(loaded, order.taps if name == "target" else ())
    with stages.time("simplify"):
        simplify(graph)
    with stages.time("compress") as done:
        stored = StoredWeights() if rounded_in else None
        error, more = shrink(
            name,
            graph,
            loaded,
            order,
            known.parameters,
            done,
            gridded=bool(rounded),
            choose=choose,
            stored=stored,
        )
        error = max(error, *rounded.values(), 0.0)
    with stages.time("write") as done:
        made = write_graphs(name, graph, known, order, work, done)
        more += made.notes
    with stages.time("check") as done:
        exact = None
        if stored is not None:
            exact = write_exact_graph(graph, work / made.place / GRAPH)
            put_back(loaded.model, stored.take(), shared=any(n.op_type == EMBEDDING for n in graph.graph))
            answers = [answer(reference, trial) for trial in trials]
        if order.static and order.packed:
            twin = capture(loaded, order.taps if name == "target" else ())
            simplify(twin)
            made = with_static(made, in_floats(twin, loaded), known, order, work)
            more += made.notes
        forget_weights(loaded)
        architecture = str(loaded.config.model_type)
        part, size = finish(name, made, architecture, known, loaded, order, work, loaded.config)
        pairs = zip(trials, answers, strict=True)
        agreement, *_ = [check_graph(name, work, part, trial, answered, exact) for trial, answered in pairs]
        check_static(name, work, part, made, trials[0], answers[0], rounded_in)
        if exact is not None:
            (work / made.place / exact).unlink()
        after = measuring.of(part_logits(work, part, measuring.window), done)
    loss = measuring.loss(before, after, "torch")
    if loss is not None:
        advice = loss.advice(part.quant, None if recipe is None else recipe.bits)
        more += () if advice is None else (advice,)
    calibrated = bool(rounded) or recipe is not None
    report = PartReport(part, size, agreement, error, calibrated, stages.seconds, loss, more, recipe)
    return report if own is None else own.put_into(report)


def _sizes(config: Any) -> tuple[int, int]:
    """Layers of a model, and the width of one of its heads."""
    wide = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, wide
