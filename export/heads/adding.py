"""Heads become parts of a bundle: of one that is being made, or of one that is finished."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from paceline.export.atomic import new_folder
from paceline.export.enlarging import finish, new_files, open_for, take_files, told
from paceline.export.errors import ExportError
from paceline.export.heads.check import check_head, lesson_of
from paceline.export.heads.checkpoint import read_head
from paceline.export.heads.config import HeadQuant, check_target, target_id
from paceline.export.heads.head import Head
from paceline.export.heads.methods import METHODS
from paceline.export.heads.parts import part_of_head, stored_weights, write_head
from paceline.export.heads.table import target_head, target_table
from paceline.export.report import HeadReport, Progress, Report, Stages, silent
from paceline.export.skips.early import write_early
from paceline.export.tapping import add_taps, check_unadapted
from paceline.export.tokens import token_ids
from paceline.export.trial import TEXT
from paceline.runtime.manifest import TOKENIZER, Manifest, Part, as_label


def read_heads(folders: Mapping[str, str], layers: int, head_dim: int) -> dict[str, Head]:
    """The heads of these folders, for a target of so many layers and such heads. Raises ExportError."""
    heads = {name: read_head(Path(folder), layers, head_dim) for name, folder in folders.items()}
    for name, head in heads.items():
        if METHODS[head.config.method].draft is None and _layer(head) >= layers - 1:
            raise ExportError(
                f"the head {name} goes on from layer {_layer(head)}, and this target has layers 0 to {layers - 1}: "
                "train a head for this target"
            )
    return heads


def _layer(head: Head) -> int:
    """The layer that a head reads first."""
    return int(head.config.taps[0].partition(".")[2])


def taps_of(heads: Mapping[str, Head], taps: tuple[str, ...]) -> tuple[str, ...]:
    """The taps of a target that has heads: those that are asked for, and what the heads read."""
    return tuple(dict.fromkeys([*taps, *(tap for head in heads.values() for tap in head.config.taps)]))


def notes_on(heads: Mapping[str, Head], bundle: Manifest) -> list[str]:
    """In words, which heads have another licence than their bundle, and which were trained for another target.

    Published heads do not say what for.
    """
    notes, weights = [], target_id(bundle).weights
    for name, head in heads.items():
        if head.licence not in ("unknown", bundle.licence):
            notes.append(
                f"{name}: its own licence is {as_label(head.licence)}, that of the bundle {bundle.licence}"
            )
        if head.config.target.weights not in ("", weights):
            notes.append(
                f"{name}: trained for another export ({as_label(head.config.target.name)}): answers stay exact, but it "
                "may draft badly: train a head for this bundle (paceline train head)"
            )
    return notes


def export_heads(
    heads: Mapping[str, Head], quant: HeadQuant, work: Path, target: Part, show: Progress
) -> dict[str, HeadReport]:
    """Write and check heads in the folder of a bundle whose target is finished. Raises ExportError."""
    made = {}
    for name, head in heads.items():
        with np.errstate(over="ignore", invalid="ignore"):  # of huge weights, which the check judges
            made[name] = _export_head(name, head, quant, work, target, Stages(name, show))
        gc.collect()
    return made


def add_heads(
    bundle: Path,
    heads: Mapping[str, str],
    out: Path,
    quant: HeadQuant = "int8",
    *,
    taps: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Give a finished bundle heads, the taps that they read and `taps`; it appears at `out`.

    It is made of links to the same files where the disk has them. Raises ExportError for a head that does not fit and
    for taps that are not found, BundleError for a bundle that is damaged, ValueError for a wrong order, OSError as the
    disk does.
    """
    started = time.monotonic()
    old = open_for(bundle, heads, out, force).manifest
    check_unadapted(old.target, bundle)
    read = read_heads(heads, old.target.layers, old.target.head_dim)
    for name, head in read.items():
        check_target(name, head.config, old.target.hidden, old.target.vocab)
    show = progress or silent
    with new_folder(out, force) as work:
        take_files(bundle, old, work)
        with Stages("target", show).time("write"):
            ids = token_ids(Tokenizer.from_file(str(work / TOKENIZER)), TEXT)
            target = add_taps(work, old.target, taps_of(read, tuple(taps)), ids)
        made = export_heads(read, quant, work, target, show)
        folders = [work / _place(name) for name in made]
        if target is not old.target or any(report.part.exits for report in made.values()):
            folders.append(work / Path(target.graph).parent)
        parts = {name: report.part for name, report in made.items()}
        manifest = finish(old, work, new_files(work, folders), target=target, drafters=parts)
    notes = tuple(notes_on(read, manifest))
    report = told(out, old, manifest, started)
    return dataclasses.replace(report, notes=report.notes + notes, heads=made)


def _place(name: str) -> str:
    return f"drafters/{name}"


def _export_head(
    name: str, head: Head, quant: HeadQuant, work: Path, target: Part, stages: Stages
) -> HeadReport:
    place = _place(name)
    with stages.time("reference"):
        tokenizer = Tokenizer.from_file(str(work / TOKENIZER))
        lesson = lesson_of(work, target, head.config.taps, token_ids(tokenizer, TEXT))
        weights = dict(head.weights)
        if METHODS[head.config.method].embeds and "embed.weight" not in weights:
            weights["embed.weight"] = target_table(work, target)
        if not (head.config.tied or head.style.own_heads or "head.weight" in weights):
            weights["head.weight"] = target_head(work, target)
        head = dataclasses.replace(head, weights=weights)
    with stages.time("compress") as done:
        stored = stored_weights(name, head, quant, done)
    with stages.time("write") as done:
        written = write_head(head, stored, work / place, done)
        early = None
        if METHODS[head.config.method].draft is None:
            early = write_early(work, target, [_layer(head)])
        part = part_of_head(place, head, written, quant, target.context, early)
    with stages.time("check"):
        agreement, kept = check_head(name, work, part, head, stored, written, lesson)
    size = written.bytes + (early.bytes if early else 0)
    return HeadReport(part, size, agreement, kept, stored.error, stages.seconds)
