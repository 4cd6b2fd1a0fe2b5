"""Draft models become parts of a bundle that is finished."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from paceline.export.adaptation.adding import adapted
from paceline.export.atomic import new_folder
from paceline.export.candidate import examine
from paceline.export.enlarging import finish, new_files, open_for, take_files, told
from paceline.export.order import Order, check_order
from paceline.export.pipeline import export_part, text_writer
from paceline.export.report import Progress, Report, Stages, silent
from paceline.export.source import load_model
from paceline.export.streams import check_streams
from paceline.export.vocabularies import own_vocabulary
from paceline.runtime.manifest import TOKENIZER


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
    old = open_for(bundle, order.drafters, out, force).manifest
    order = replace(order, profile=old.profile)
    check_order(order)
    show = progress or silent
    notes: list[str] = []
    with new_folder(out, force) as work:
        take_files(bundle, old, work)
        tokenizer = Tokenizer.from_file(str(work / TOKENIZER))
        made = {}
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
            del loaded
            gc.collect()
        files = new_files(work, [work / "drafters" / name for name in made])
        parts = {name: report.part for name, report in made.items()}
        manifest = finish(old, work, files, drafters=parts)
    report = told(out, old, manifest, started)
    return replace(report, parts=made, notes=report.notes + tuple(notes))
