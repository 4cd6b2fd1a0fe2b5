"""Static graphs as they were written, run as the runtime does, against the answers that the part's graph has met."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from paceline.export.check import EXACT, ROUNDED_ACTIVATIONS, TABLES, Limits, check_agreement, compare, replay
from paceline.export.finishing import Written
from paceline.export.static.range import check_range
from paceline.export.static.writing import write_static
from paceline.export.trial import Answers, Trial
from paceline.runtime.buckets import Buckets
from paceline.runtime.manifest import Part
from paceline.runtime.model.device import find_device
from paceline.runtime.model.graph import Graph
from paceline.runtime.model.model import Model
from paceline.runtime.model.static import StaticGraphs

_EXACT = "exact."
_THREADS = 1
"""Most runs have few rows, for which threads only wait for each other."""


@dataclass(frozen=True, slots=True)
class _Tried:
    """What a part is tried on. reference: what gave the answers."""

    name: str
    folder: Path
    part: Part
    trial: Trial
    answers: Answers
    reference: str


def check_static(
    name: str,
    folder: Path,
    part: Part,
    made: Written,
    trial: Trial,
    answers: Answers,
    rounded: bool,
    reference: str = "torch",
) -> None:
    """Run a trial through every static graph of a part. Raises ExportError for one that disagrees with the reference.

    folder: of the bundle. rounded: whether the part's weights are; then twins that do not round activations have to
    agree, and the graphs themselves up to that rounding, where they have the codes of the weights. Graphs in 16 bits
    may be further away, and everything that they compute has to be finite.
    """
    if part.static is None or made.forms is None:
        return
    place, own = (folder / part.graph).parent, made.forms.graph is made.graph
    tried = _Tried(name, folder, part, trial, answers, reference)
    if rounded and own:
        write_static(made.forms.exactly(), place, _EXACT)
        try:
            _check_all(tried, TABLES, _EXACT)
        finally:
            for file in part.static.names():
                (place / f"{_EXACT}{file}").unlink(missing_ok=True)
    if part.static.type == "fp16":
        check_range(name, made.forms, place, trial.prompt)
    usual = TABLES if rounded else EXACT
    _check_all(tried, ROUNDED_ACTIVATIONS if rounded and own else usual)


def _check_all(tried: _Tried, limits: Limits, prefix: str = "") -> None:
    sizes = tried.part.static
    assert sizes is not None
    limits = limits.over(sizes.type) if sizes.type == "fp16" else limits
    for alone in _each(sizes, tried.trial.length):
        part = msgspec.structs.replace(tried.part, static=alone)
        what = f"with static graphs of {alone.rows[0]} rows over {alone.contexts[0]}"
        got, meant = _pairs(tried, part, prefix)
        check_agreement(tried.name, compare(got, meant), limits, what, tried.reference)
        gc.collect()


def _each(sizes: Buckets, least: int) -> Iterator[Buckets]:
    """One number of rows and one size of the cache at a time, of those that hold a trial."""
    for context in sizes.contexts:
        for rows in sizes.rows if context >= least else ():
            yield msgspec.structs.replace(sizes, rows=[rows], contexts=[context])


def _pairs(tried: _Tried, part: Part, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits of all rows of a trial, and those that are meant; then of the last row of the prompt, read at once."""
    trial, answers = tried.trial, tried.answers

    def opened(path: str) -> Graph:
        file = tried.folder / path
        return Graph(file.with_name(f"{prefix}{file.name}"), find_device("cpu"), _THREADS, part)

    model = Model(StaticGraphs(part, opened), part, trial.length, trial.length, trial.length)
    prompt, tree, grown, rest = replay(model, trial)
    model.rewind(0)
    last = model.extend(trial.prompt)[None]
    pairs = [
        (prompt, answers.prompt),
        (tree, answers.tree),
        (grown, answers.tree),
        (rest, answers.rest),
        (last, answers.prompt[-1:]),
    ]
    got, meant = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return got, meant
