"""From a checkpoint to a bundle: load, capture, shrink, write, check; only then does the folder appear."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from tokenizers import Tokenizer

from paceline.export.atomic import check_free, new_folder
from paceline.export.caches import write_cached_graphs
from paceline.export.candidate import Candidate, examine
from paceline.export.capture import capture
from paceline.export.check import (
    Agreement,
    check_graph,
    count_nodes,
    part_logits,
)
from paceline.export.exact_graph import write_exact_graph
from paceline.export.facts import Facts, facts
from paceline.export.loss import MOST, WINDOW, Loss, sample
from paceline.export.order import Order, check_order
from paceline.export.passes import Floats, simplify
from paceline.export.recipe import Recipe
from paceline.export.shrink import block_of, keeps_inputs, mixed, profile_of, quant_of, shrink
from paceline.export.source import ExportError, Loaded, load_model
from paceline.export.storage import Profile, layout_of
from paceline.export.stored import StoredWeights
from paceline.export.text_check import open_text, tokens_beyond
from paceline.export.text_rounding import calibrate_model, exact_inputs, mix
from paceline.export.tokenizer_files import first_difference, token_ids, write_text_files, write_tokenizer
from paceline.export.trial import TEXT, answer, forget_weights, logits_of, make_trial
from paceline.export.weights import GRAPH, write_model
from paceline.runtime.manifest import (
    SCHEMA,
    File,
    Manifest,
    Part,
    Weight,
    write_manifest,
)
from paceline.runtime.model.perplexity import perplexity
from paceline.runtime.ops.packed_matmul import EMBEDDING

Progress = Callable[[str, str, float], None]
"""Takes a part of the bundle, the stage it is in, and how much of the stage is done, 0 to 1."""

STAGES = (
    "find files",
    "load",
    "try in torch",
    "calibrate",
    "make graph",
    "simplify",
    "compress",
    "write",
    "check",
)


@dataclass(frozen=True, slots=True)
class PartReport:
    """One exported model.

    agreement: of the graph with torch, by the weights that are stored and without rounding of activations.
    matrix_error: the worst relative error of a quantised matrix, 0 without. calibrated: whether rounding followed a
    text. seconds: by stage. loss: what rounding costs, or None where nothing is rounded and no text was named.
    """

    part: Part
    bytes: int
    agreement: Agreement
    matrix_error: float
    calibrated: bool
    seconds: Mapping[str, float]
    loss: Loss | None
    notes: tuple[str, ...] = ()
    """What is to be said of its weights."""
    recipe: Recipe | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What was written. bytes counts all files of the bundle."""

    folder: Path
    manifest: Manifest
    parts: Mapping[str, PartReport]
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()
    """What of the checkpoint will not work, or was left out."""


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
    show = progress or (lambda part, stage, share: None)
    with new_folder(out, force) as work:
        part_stages = {name: _Stages(name, show) for name in ("target", *order.drafters)}
        with part_stages["target"].time("find files"):
            given = _examine(order)
        with given["target"].named():
            tokenizer, notes = write_text_files(given["target"].folder, work)
        text, doubts = open_text(work)
        notes += doubts
        for name in order.drafters:
            with given[name].named():
                _check_vocabulary(name, given[name].folder, tokenizer)
        parts = {}
        for name, stages in part_stages.items():
            with stages.time("load"):
                loaded = load_model(given[name])
                if name == "target":
                    titles = order.name or loaded.name, order.licence or loaded.licence
                    notes += tokens_beyond(work, text, facts(loaded).vocab, TEXT)
            notes += [f"{name}: {note}" for note in loaded.notes]
            parts[name] = _export_part(name, loaded, tokenizer, order, work, stages, warn)
            notes += [f"{name}: {note}" for note in parts[name].notes]
            del loaded
            gc.collect()
        manifest = _manifest(titles, parts, profile_of(order), work)
        write_manifest(manifest, work)
    size = sum(f.bytes for f in manifest.files.values())
    return Report(out, manifest, parts, size, time.monotonic() - started, tuple(notes))


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


def _check_vocabulary(name: str, folder: Path, target: Tokenizer) -> None:
    with TemporaryDirectory() as aside:
        theirs = write_tokenizer(folder, Path(aside)).backend_tokenizer
    if difference := first_difference(target, theirs):
        raise ExportError(
            f"the drafter {name} has a different tokenizer ({difference}); "
            "cross-vocabulary drafting is not there yet"
        )


class _Stages:
    """Times the stages of one part and shows them."""

    def __init__(self, part: str, show: Progress) -> None:
        self._part, self._show = part, show
        self.seconds: dict[str, float] = {}
        self._stage, self._since = "", 0.0

    def time(self, stage: str) -> _Stages:
        """Enter a stage: use as a context manager."""
        self._stage = stage
        return self

    def __enter__(self) -> Callable[[float], None]:
        self._since = time.monotonic()
        stage = self._stage
        self._show(self._part, stage, 0.0)
        return lambda share: self._show(self._part, stage, share)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        took = time.monotonic() - self._since
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + took
        if kind is None:
            self._show(self._part, self._stage, 1.0)


def _measured_ids(tokenizer: Tokenizer, text: str | None) -> list[int]:
    """Of the text that perplexity is measured on; none without a text, whatever a tokenizer puts before it."""
    if text is None:
        return []
    ids = token_ids(tokenizer, text)[:MOST]
    if len(ids) < 2:
        raise ExportError(
            f"the text to evaluate has {len(ids)} token{'s' * (len(ids) != 1)} in this vocabulary, and perplexity "
            "needs two: give a longer one"
        )
    return ids


def _export_part(
    name: str,
    loaded: Loaded,
    tokenizer: Tokenizer,
    order: Order,
    work: Path,
    stages: _Stages,
    warn: Callable[[str], None] | None,
) -> PartReport:
    """Export one model into its folder. Torch answers first, so that its weights can go before the check."""
    known = facts(loaded)
    taps = order.taps if name == "target" else ()
    place = "target" if name == "target" else f"drafters/{name}"
    window = min(known.context, WINDOW)
    rounded_in = quant_of(order, loaded) != "none"
    with stages.time("try in torch") as done:
        lengths = [1] if known.rope is None else [1, known.rope.original_context + 1]
        text = token_ids(tokenizer, TEXT)
        trials = [make_trial(text, known.vocab, known.context, within) for within in lengths]
        answers = [] if rounded_in else [answer(loaded, trial) for trial in trials]
        measured = sample() if order.eval_text is None and rounded_in else order.eval_text
        ids = _measured_ids(tokenizer, measured)
        tried = _counted(lambda t: logits_of(loaded, t, len(t)), len(ids), done)
        before = perplexity(tried, ids, window) if ids else None
    with stages.time("calibrate") as done:
        rounded = calibrate_model(name, loaded, tokenizer, order, done, warn)
        recipe, choose = mix(loaded, tokenizer, order, done) if mixed(order) else (None, None)
        if keeps_inputs(order):
            choose = exact_inputs(loaded, tokenizer)
    with stages.time("make graph"):
        graph = capture(loaded, taps)
    with stages.time("simplify"):
        simplify(graph)
    with stages.time("compress") as done:
        parameters = known.parameters
        stored = StoredWeights() if rounded_in else None
        error, more = shrink(
            name,
            graph,
            loaded,
            order,
            lambda n: done(min(1.0, n / parameters)),
            gridded=bool(rounded),
            choose=choose,
            stored=stored,
        )
        error = max(error, *rounded.values(), 0.0)
    with stages.time("write") as done:
        weights, size = write_model(graph, work / place, done)
        caches = write_cached_graphs(graph, work / place / GRAPH)
        size += sum((work / place / file).stat().st_size for file in caches.values())
    with stages.time("check") as done:
        exact = None
        if stored is not None:
            exact = write_exact_graph(graph, work / place / GRAPH)
            stored.put_back(loaded.model, shared=any(n.op_type == EMBEDDING for n in graph.graph))
            answers = [answer(loaded, trial) for trial in trials]
        forget_weights(loaded)
        nodes = count_nodes(graph, known.layers)
        kind = str(loaded.config.model_type)
        part = msgspec.structs.replace(
            _part(
                f"{place}/{GRAPH}", kind, known, loaded, order, taps, nodes, weights, layout_of(graph.graph)
            ),
            caches={form: f"{place}/{file}" for form, file in caches.items()},
        )
        pairs = zip(trials, answers, strict=True)
        agreement, *_ = [check_graph(name, work, part, trial, answered, exact) for trial, answered in pairs]
        if exact is not None:
            (work / place / exact).unlink()
        checked = _counted(part_logits(work, part, window), len(ids), done)
        after = perplexity(checked, ids, window) if ids else None
    loss = None
    if before is not None and after is not None:
        loss = Loss(len(ids), order.eval_text is not None, before, after)
        advice = loss.advice(part.quant, None if recipe is None else recipe.bits)
        more += () if advice is None else (advice,)
    calibrated = bool(rounded) or recipe is not None
    return PartReport(part, size, agreement, error, calibrated, stages.seconds, loss, more, recipe)


def _counted(
    logits: Callable[[Sequence[int]], Floats], tokens: int, done: Callable[[float], None]
) -> Callable[[Sequence[int]], Floats]:
    """The same function, which tells the share of `tokens` that it has seen."""
    seen = 0

    def counted(window: Sequence[int]) -> Floats:
        nonlocal seen
        found = logits(window)
        seen += len(window)
        done(seen / tokens)
        return found

    return counted


def _part(
    graph: str,
    architecture: str,
    known: Facts,
    loaded: Loaded,
    order: Order,
    taps: tuple[str, ...],
    nodes: float,
    weights: dict[str, Weight],
    layout: int | None,
) -> Part:
    return Part(
        graph=graph,
        architecture=architecture,
        layers=known.layers,
        kv_heads=known.kv_heads,
        head_dim=known.head_dim,
        hidden=known.hidden,
        vocab=known.vocab,
        context=known.context,
        parameters=known.parameters,
        quant=quant_of(order, loaded),
        block=block_of(order),
        window=known.window,
        taps=list(taps),
        rope=known.rope,
        nodes_per_layer=round(nodes, 1),
        layout=layout,
        weights=weights,
    )


def _manifest(
    titles: tuple[str, str], parts: Mapping[str, PartReport], profile: Profile, work: Path
) -> Manifest:
    versions = ("paceline", "torch", "transformers", "onnx", "onnxruntime")
    return Manifest(
        schema=SCHEMA,
        name=titles[0],
        licence=titles[1],
        profile=profile,
        producer={package: _version(package) for package in versions},
        target=parts["target"].part,
        drafters={name: made.part for name, made in parts.items() if name != "target"},
        files={
            path.relative_to(work).as_posix(): File(path.stat().st_size, _digest(path))
            for path in sorted(work.rglob("*"))
            if path.is_file()
        },
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
