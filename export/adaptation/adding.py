"""Draft models of a finished bundle get adapters, and the graph that trains them."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer

from paceline.export.adaptation.graph import add_adapters, add_predictor
from paceline.export.adaptation.step import training_step
from paceline.export.atomic import new_folder
from paceline.export.caches import write_cached_graphs
from paceline.export.drafts import with_drafts
from paceline.export.enlarging import finish, new_files, open_for, take_files, told
from paceline.export.errors import ExportError
from paceline.export.order import check_rank
from paceline.export.report import PartReport, Progress, Report, Stages, silent
from paceline.export.static.dropping import drop_static
from paceline.export.tapping import logits_by_form, same_logits
from paceline.export.tokens import token_ids
from paceline.export.trial import TEXT
from paceline.runtime.adaptation.contract import groups, sample_shapes
from paceline.runtime.adaptation.step import TrainingStep
from paceline.runtime.bundle.whole_file import write_atomically
from paceline.runtime.manifest import TOKENIZER, TRAINING, Part
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.part import Schedule

_TRIED = 48
_RATE = 1e-2


def adapt_bundle(
    bundle: Path,
    rank: int,
    out: Path,
    *,
    predictor: Schedule | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Give the draft models of a finished bundle adapters of this rank; the result appears at `out`.

    predictor: how they learn to predict acceptance, too; None not at all.

    A bundle without draft models is one itself, for other bundles (`--drafter-bundle`): its model gets them. Raises
    ExportError for a model that cannot have adapters, BundleError for a bundle that is damaged, ValueError for a wrong
    order, OSError as the disk does.
    """
    started = time.monotonic()
    check_rank(rank)
    old = open_for(bundle, (), out, force).manifest
    parts = {name: part for name, part in old.drafters.items() if part.kind == "decoder"}
    if not parts and old.drafters:
        raise ExportError(
            f"{bundle} has no draft model that could learn, and what drafts in it is made of its model as it is: give "
            "it a draft model first (--drafter NAME=DIR)"
        )
    parts = parts or {"target": old.target}
    show = progress or silent
    with new_folder(out, force) as work:
        take_files(bundle, old, work)
        ids = token_ids(Tokenizer.from_file(str(work / TOKENIZER)), TEXT)
        for name, part in parts.items():
            with Stages(name, show).time("write"):
                parts[name] = with_adapters(name, part, work, rank, ids, predictor)
        files = new_files(work, [work / Path(part.graph).parent for part in parts.values()])
        manifest = finish(old, work, files, target=parts.pop("target", None), drafters=parts)
    return told(out, old, manifest, started)


def adapted(
    name: str, made: PartReport, folder: Path, rank: int, tokenizer: Tokenizer, stages: Stages
) -> PartReport:
    """A part of a bundle that is just being made, with adapters. Raises ExportError, see `with_adapters`."""
    with stages.time("check"):
        part = with_adapters(name, made.part, folder, rank, token_ids(tokenizer, TEXT))
    step = (folder / str(part.training)).stat().st_size
    return replace(made, part=part, bytes=made.bytes + step)


def with_adapters(
    name: str, part: Part, folder: Path, rank: int, ids: list[int], predictor: Schedule | None = None
) -> Part:
    """Give a part of the bundle in this folder adapters in all of its graphs, and a training step; the new part, which
    has no static graphs.

    ids: of a text, on which the logits with adapters of zero must be what they were. Raises ExportError.
    """
    if part.adapters:
        raise ExportError(f"{name} has adapters already: export the model that it was made of again")
    path = folder / part.graph
    ids = [min(number, part.vocab - 1) for number in ids[: min(_TRIED, part.context)]]
    before = logits_by_form(folder, part, ids)
    graph = ir.load(path)
    try:
        adapters = add_adapters(graph, part.layers, rank)
        if predictor is not None:
            adapters |= add_predictor(graph, part.layers)
        made = msgspec.structs.replace(drop_static(part, folder), adapters=adapters, predictor=predictor)
        step = training_step(graph, made)
    except ExportError as error:
        raise ExportError(f"{name}: {error}") from None
    write_atomically(path, ir.to_proto(graph).SerializeToString(), private=False)
    write_cached_graphs(graph, path)
    if part.drafts:
        made, _ = with_drafts(made, graph, folder)
    write_atomically(path.with_name(TRAINING), ir.to_proto(step).SerializeToString(), private=False)
    made = msgspec.structs.replace(made, training=str(PurePosixPath(part.graph).with_name(TRAINING)))
    for form, after in logits_by_form(folder, made, ids).items():
        if not same_logits(before[form], after):
            raise ExportError(
                f"{name}: adapters would change the logits over a cache of {form}: leave --adapt out"
            )
    _check_step(name, folder, made, ids)
    gc.collect()
    return made


def _check_step(name: str, folder: Path, part: Part, ids: list[int]) -> None:
    """Let it learn the text: the loss must fall. Raises ExportError."""
    step = TrainingStep(Graph(folder / str(part.training), find_device("cpu"), 1, part), part)
    sample = {label: np.zeros(shape, kind) for label, (kind, shape) in sample_shapes().items()}
    count = len(ids) - 1
    sample["token_ids"][:count], sample["label"][:count] = ids[:-1], ids[1:]
    sample["ids"][:count, 0], sample["probs"][:count, 0] = ids[1:], 0.9
    sample["weight"][:count] = sample["label_weight"][:count] = 1
    losses = [step.run(sample, *[_RATE] * groups(part)) for _ in range(4)]
    if not losses[-1] < losses[0]:
        raise ExportError(
            f"{name}: its training step does not learn ({losses[0]:.3g}, {losses[-1]:.3g}): leave --adapt out"
        )
