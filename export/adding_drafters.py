"""Draft models become parts of a bundle that is finished."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from paceline.export.adaptation.adding import adapted
from paceline.export.atomic import check_free, new_folder
from paceline.export.candidate import examine
from paceline.export.heads.adding import take_files
from paceline.export.order import Order, check_order
from paceline.export.pipeline import export_part, text_writer
from paceline.export.report import Progress, Report, Stages, files_in, silent
from paceline.export.source import load_model
from paceline.export.streams import check_streams
from paceline.export.vocabularies import own_vocabulary
from paceline.runtime.bundle.bundle import open_bundle
from paceline.runtime.manifest import SCHEMA, TOKENIZER, write_manifest


def add_drafters(
    bundle: Path,
    order: Order,
    out: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Report:
    """Give a finished bundle the draft models of an order, stored as it says; it appears at `out`.

    It is made of links to the same files where the disk has them. Raises ExportError for a draft model that does not
    fit, BundleError for a bundle that is damaged, ValueError for a wrong order, OSError as the disk does.
    """
    started = time.monotonic()
    old = open_bundle(bundle).manifest
    order = replace(order, profile=old.profile)
    check_order(order)
    check_free(out, force)
    if taken := sorted(old.drafters.keys() & order.drafters.keys()):
        raise ValueError(f"{bundle} has a drafter {taken[0]!r} already: choose another name for the new one")
    show = progress or silent
    notes: list[str] = []
    with new_folder(out, force) as work:
        take_files(bundle, old, work)
        tokenizer = Tokenizer.from_file(str(work / TOKENIZER))
        made, files = {}, dict(old.files)
        for name, source in order.drafters.items():
            stages = Stages(name, show)
            with stages.time("find files"):
                given = examine(source, None, None)
            with given.named():
                own = own_vocabulary(name, text_writer(given), tokenizer, work)
            with stages.time("load"):
                loaded = load_model(given)
            notes += [f"{name}: {note}" for note in loaded.notes]
            made[name] = export_part(name, loaded, tokenizer, order, work, stages, warn, own)
            check_streams(name, made[name].part, old.target, order.adapt)
            if order.adapt is not None:
                reads = tokenizer if own is None else own.tokenizer
                made[name] = adapted(name, made[name], work, order.adapt, reads, stages)
            notes += [f"{name}: {note}" for note in made[name].notes]
            files |= files_in(work / "drafters" / name, work)
            del loaded
            gc.collect()
        drafters = {**old.drafters, **{name: report.part for name, report in made.items()}}
        manifest = msgspec.structs.replace(
            old, schema=SCHEMA, drafters=drafters, files=dict(sorted(files.items()))
        )
        write_manifest(manifest, work)
    size = sum(file.bytes for file in manifest.files.values())
    return Report(out, manifest, made, size, time.monotonic() - started, tuple(notes), {})
