"""From a GGUF file to a bundle without torch: the graph is written, and compared with the same model in numpy."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from paceline.export.atomic import check_free, new_folder
from paceline.export.check import check_graph, part_logits
from paceline.export.errors import ExportError
from paceline.export.exact_graph import write_exact_graph
from paceline.export.finishing import finish, with_static, write_graphs
from paceline.export.folder import licence_of
from paceline.export.gguf.find import find_gguf
from paceline.export.gguf.text import write_gguf_text
from paceline.export.gguf.unpack import Unpacked, unpack
from paceline.export.heads.adding import export_heads, notes_on, read_heads, taps_of
from paceline.export.heads.config import check_target
from paceline.export.measuring import Measuring
from paceline.export.order import Order, check_order
from paceline.export.passes import Floats, simplify
from paceline.export.plain.decoder import Decoder, decoder_of, needs_torch
from paceline.export.plain.forward import logits_of
from paceline.export.plain.graph import plain_graph
from paceline.export.report import Facts, PartReport, Progress, Report, Stages, manifest_of, silent
from paceline.export.shrink import in_floats, profile_of, quant_of, shrink
from paceline.export.static.check import check_static
from paceline.export.storage import LOSSLESS
from paceline.export.stored import StoredWeights
from paceline.export.text_check import open_text, tokens_beyond
from paceline.export.tokens import token_ids
from paceline.export.trial import TEXT, answer, make_trial
from paceline.export.vocabularies import OwnVocabulary, own_vocabulary
from paceline.export.weights import GRAPH
from paceline.runtime.manifest import write_manifest
from paceline.runtime.ops.packed_matmul import EMBEDDING

_REFERENCE = "numpy"
_MADE_BY = ("paceline", "numpy", "onnx", "onnxruntime")


@dataclass(frozen=True, slots=True)
class _Given:
    """One part: its file and what that is."""

    gguf: Unpacked
    decoder: Decoder

    @property
    def dtype(self) -> str:
        """The 16-bit type of most weights, or float32."""
        return self.gguf.weights.dtype()


def export_plain(
    order: Order,
    out: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Report:
    """Export GGUF models to the folder `out`, as `export_bundle` does, where their graphs are known.

    The bundle is the same, file by file, but for the names of the packages that made it. Raises ExportError for what
    needs torch, ModuleNotFoundError for checkpoints that are none of GGUF, and otherwise as `export_bundle`.
    """
    del warn  # nothing here takes long for little
    started = time.monotonic()
    check_order(order)
    check_free(out, force)
    if order.quant not in (None, *LOSSLESS):
        raise needs_torch(order.source, f"--quant {order.quant}")
    show = progress or silent
    with new_folder(out, force) as work:
        part_stages = {name: Stages(name, show) for name in ("target", *order.drafters)}
        with part_stages["target"].time("find files"):
            given = {name: _given(source) for name, source in order.drafters.items()}
            given["target"] = _given(order.source, order.revision, order.file)
            target = given["target"].decoder
            heads = read_heads(order.heads, target.layers, target.head_dim)
            order = replace(order, taps=taps_of(heads, order.taps))
        tokenizer, notes = write_gguf_text(given["target"].gguf, work)
        text, doubts = open_text(work)
        notes += doubts
        notes += tokens_beyond(work, text, target.vocab, TEXT)
        for name, head in heads.items():
            check_target(name, head.config, target.hidden, target.vocab)
        own = {
            name: own_vocabulary(name, partial(write_gguf_text, given[name].gguf), tokenizer, work)
            for name in order.drafters
        }
        parts = {}
        for name, stages in part_stages.items():
            notes += [f"{name}: {note}" for note in given[name].gguf.notes]
            parts[name] = _export_part(name, given[name], tokenizer, order, work, stages, own.get(name))
            notes += [f"{name}: {note}" for note in parts[name].notes]
            gc.collect()
        file = given["target"].gguf
        titles = order.name or file.name, order.licence or licence_of(file.folder)
        drafts = export_heads(heads, order.head_quant, work, parts["target"].part, show)
        manifest = manifest_of(titles, {**parts, **drafts}, profile_of(order), work, _MADE_BY)
        notes += notes_on(heads, manifest)
        write_manifest(manifest, work)
    size = sum(f.bytes for f in manifest.files.values())
    return Report(out, manifest, parts, size, time.monotonic() - started, tuple(notes), drafts)


def _given(source: str, revision: str | None = None, file: str | None = None) -> _Given:
    path = find_gguf(source, revision, file)
    if path is None:
        raise ModuleNotFoundError(f"{source} is no GGUF file: torch reads it", name="torch")
    made = unpack(path, None if Path(source).is_file() else path.with_name("README.md"))
    with made.named():
        return _Given(made, decoder_of(made))


def _facts(given: _Given) -> Facts:
    d = given.decoder
    return Facts(
        layers=d.layers,
        kv_heads=d.kv_heads,
        head_dim=d.head_dim,
        hidden=d.hidden,
        vocab=d.vocab,
        context=d.context,
        window=d.window or None,
        parameters=sum(int(np.prod(shape)) for shape in d.shapes().values()),
        rope=None,
    )


def _export_part(
    name: str,
    given: _Given,
    tokenizer: Tokenizer,
    order: Order,
    work: Path,
    stages: Stages,
    own: OwnVocabulary | None = None,
) -> PartReport:
    """Export one model into its folder. own: its tokenizer, if it is not the target's."""
    tokenizer, order = tokenizer if own is None else own.tokenizer, order.of(name)
    known, decoder = _facts(given), given.decoder
    rounded_in = quant_of(order, given) != "none"
    with stages.time("load"):
        weights = given.gguf.weights.arrays()
        _check_numbers(given.gguf.path, weights)
    trial = make_trial(token_ids(tokenizer, TEXT), known.vocab, known.context)
    measuring = Measuring(order, tokenizer, known.context, rounded_in)
    with stages.time("reference") as done:
        before = measuring.of(lambda tokens: logits_of(decoder, weights, tokens), done)
    with stages.time("make graph"):
        graph = plain_graph(decoder, weights, order.taps if name == "target" else ())
    with stages.time("simplify"):
        simplify(graph)
    with stages.time("compress") as done:
        stored = StoredWeights()
        error, more = shrink(name, graph, given, order, known.parameters, done, stored=stored)
    with stages.time("write") as done:
        made = write_graphs(name, graph, known, order, work, done)
        more += made.notes
    with stages.time("check") as done:
        exact = write_exact_graph(graph, work / made.place / GRAPH) if rounded_in else None
        _put_back(weights, stored, shared=any(node.op_type == EMBEDDING for node in graph.graph))
        answers = answer(lambda tokens, within: logits_of(decoder, weights, tokens), trial)
        if order.static and order.packed:
            twin = plain_graph(decoder, weights, order.taps if name == "target" else ())
            simplify(twin)
            made = with_static(made, in_floats(twin, given), known, order, work)
            more += made.notes
        weights.clear()
        part, size = finish(name, made, decoder.kind, known, given, order, work)
        agreement = check_graph(name, work, part, trial, answers, exact, _REFERENCE)
        check_static(name, work, part, made, trial, answers, rounded_in, _REFERENCE)
        if exact is not None:
            (work / made.place / exact).unlink()
        after = measuring.of(part_logits(work, part, measuring.window), done)
    loss = measuring.loss(before, after, _REFERENCE)
    report = PartReport(part, size, agreement, error, False, stages.seconds, loss, more, reference=_REFERENCE)
    return report if own is None else own.put_into(report)


def _check_numbers(path: Path, weights: Mapping[str, Floats]) -> None:
    """Raise ExportError where a tensor holds NaN or infinity."""
    for name, values in weights.items():
        if count := int(values.size - np.isfinite(values).sum()):
            raise ExportError(
                f"{path}: {name} holds {count} of {values.size} numbers that are NaN or infinite: "
                "fetch the weights again, or take a file from before they were damaged"
            )


def _put_back(weights: dict[str, Floats], stored: StoredWeights, *, shared: bool) -> None:
    """Give every weight the values that its codes stand for; a tied table only where it is read from them."""
    codes = stored.take()
    while codes:
        name, found = codes.popitem()
        values = found.dense(0, found.n)
        if name == "lm_head.weight" and name not in weights and shared:
            weights["model.embed_tokens.weight"] = values
        else:
            weights[name] = values
