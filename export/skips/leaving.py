"""A finished bundle gets a part that drafts with the target's first layers, as they are, after one of several."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
from tokenizers import Tokenizer

from paceline.export.atomic import new_folder
from paceline.export.check import part_logits
from paceline.export.enlarging import finish, new_files, open_for, take_files, told
from paceline.export.errors import ExportError
from paceline.export.heads.check import lesson_of
from paceline.export.passes import Floats
from paceline.export.report import ExitReport, Progress, Report, Stages, silent
from paceline.export.skips.early import Early, check_layers, check_shared, write_early, write_speaker
from paceline.export.tapping import add_taps, check_unadapted
from paceline.export.tokens import token_ids
from paceline.export.trial import TEXT
from paceline.runtime.manifest import TOKENIZER, Part
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.part import first_layers, made_of

_NEAR = 1e-4
"""Of the largest logit: what two graphs of the same layers may differ by."""


def add_exits(
    bundle: Path,
    wishes: Mapping[str, Sequence[int]],
    out: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Give a finished bundle such parts, by name the layers after which they leave; it appears at `out`.

    It is made of links to the same files where the disk has them. Raises ExportError for a model whose layers cannot be
    told apart, BundleError for a bundle that is damaged, ValueError for a wrong order, OSError as the disk does.
    """
    started = time.monotonic()
    old = open_for(bundle, wishes, out, force).manifest
    check_unadapted(old.target, bundle)
    check_shared(old.target, bundle)
    every = sorted({layer for layers in wishes.values() for layer in layers})
    check_layers(every, old.target)
    with new_folder(out, force) as work:
        take_files(bundle, old, work)
        ids = token_ids(Tokenizer.from_file(str(work / TOKENIZER)), TEXT)
        target = add_taps(work, old.target, [f"hidden.{layer}" for layer in every], ids)
        made = {
            name: _export_exits(name, sorted({*layers}), work, target, ids, Stages(name, progress or silent))
            for name, layers in wishes.items()
        }
        files = new_files(work, [work / Path(target.graph).parent])
        parts = {name: report.part for name, report in made.items()}
        manifest = finish(old, work, files, target=target, drafters=parts)
    return dataclasses.replace(told(out, old, manifest, started), exits=made)


def _export_exits(
    name: str, layers: Sequence[int], work: Path, target: Part, ids: Sequence[int], stages: Stages
) -> ExitReport:
    path = str(PurePosixPath(target.graph).with_name(f"exit.{name}.onnx"))
    with stages.time("write"):
        early = write_early(work, target, layers)
        write_speaker(work, target, path)
    part = part_leaving(target, early, path)
    with stages.time("check"):
        right = _right(work, target, part, ids)
    part = msgspec.structs.replace(part, accepted=[round(max(right.values()), 4)])
    size = early.bytes + (work / path).stat().st_size
    return ExitReport(part, size, right, stages.seconds)


def part_leaving(target: Part, early: Early, path: str) -> Part:
    """What the manifest says of the target left after these layers; path: of the graph that says tokens."""
    return made_of(
        target,
        graph=path,
        layers=0,
        parameters=max(round(target.parameters * early.head / early.whole), 1),
        taps=[],
        rope=None,
        caches={},
        adapters={},
        window=None,
        nodes_per_layer=0.0,
        kind="exit",
        reads=[f"hidden.{layer}" for layer in early.graphs],
        features=target.hidden,
        exits=dict(early.graphs),
        costs=early.costs(early.head),
        method="del",
    )


def _right(work: Path, target: Part, part: Part, ids: Sequence[int]) -> dict[int, float]:
    """By layer, how often the target's choice on a text is that of its first layers.

    Raises ExportError where what these say is not what the target's norm and LM head make of their hidden states.
    """
    lesson = lesson_of(work, target, part.reads, ids)
    rows, width = len(lesson.tokens), target.hidden
    tokens = [min(number, target.vocab - 1) for number in ids[:rows]]
    whole = part_logits(work, target, rows, "fp32")(tokens)
    found = {}
    for number, layer in enumerate(part.exits):
        states = np.ascontiguousarray(lesson.features[:, number * width : (number + 1) * width])
        first = first_layers(target, part, layer)
        own = _spoken(work, first, tokens, None)
        behind = _spoken(work, part, tokens, states)
        if not np.allclose(own, behind, rtol=0, atol=_NEAR * float(np.abs(own).max())):
            raise ExportError(
                f"{part.exits[layer]}: the norm and the LM head of this model do not say what its first layers say: "
                "nothing was written"
            )
        found[layer] = float((own.argmax(axis=1) == whole.argmax(axis=1)).mean())
    return found


def _spoken(work: Path, part: Part, tokens: Sequence[int], states: Floats | None) -> Floats:
    """Logits of every row of a text, float32[T, V]."""
    rows = len(tokens)
    model = Model(Graph(work / part.graph, find_device("cpu"), 0, part), part, rows, rows)
    model.prepare(rows)
    mask = np.tri(rows, dtype=np.bool_)
    return model.grow(list(tokens), range(rows), mask, 0, states).copy()
